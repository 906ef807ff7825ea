"use strict";
// Panels say in their readout what the mark under the mouse, or the focused one, stands for. A click keeps it there until the
// next click or Escape. Arrow keys go from mark to mark of a strip, Tab from strip to strip. A field filters the items of its
// panel by what they say of themselves. All text is set as text, never as markup.
(() => {
  for (const panel of document.querySelectorAll(".panel")) {
    filter(panel);
    const readout = panel.querySelector("[data-readout]");
    const marks = [...panel.querySelectorAll("[data-mark]")];
    if (!readout || !marks.length) continue;
    const hint = readout.textContent;
    const texts = new Map();
    for (const mark of marks) {
      texts.set(mark, mark.title);
      mark.setAttribute("aria-label", mark.title);
      mark.removeAttribute("title"); // the readout takes its place
    }
    let locked = null;
    const markOf = (event) => event.target.closest("[data-mark]");
    const besides = (mark) => [...(mark.closest(".strip") || panel).querySelectorAll("[data-mark]")];
    const show = (mark) => { readout.textContent = texts.get(locked || mark) ?? hint; };
    const lock = (mark) => {
      if (locked) locked.classList.remove("locked");
      locked = mark === locked ? null : mark;
      if (locked) locked.classList.add("locked");
      show(mark);
    };
    const focus = (mark) => {
      for (const other of besides(mark)) other.tabIndex = other === mark ? 0 : -1;
      mark.focus();
    };
    panel.addEventListener("pointerover", (event) => { if (markOf(event)) show(markOf(event)); });
    panel.addEventListener("pointerleave", () => show(texts.has(document.activeElement) ? document.activeElement : null));
    panel.addEventListener("focusin", (event) => { if (markOf(event)) show(markOf(event)); });
    panel.addEventListener("click", (event) => { if (markOf(event)) { lock(markOf(event)); focus(markOf(event)); } });
    panel.addEventListener("keydown", (event) => {
      const mark = markOf(event);
      if (event.key === "Escape") lock(locked);
      if (!mark) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const strip = step ? besides(mark) : [];
      if (step) focus(strip[Math.min(Math.max(strip.indexOf(mark) + step, 0), strip.length - 1)]);
      else if (event.key === "Enter" || event.key === " ") lock(mark);
      else return;
      event.preventDefault();
    });
  }
  function filter(panel) {
    const field = panel.querySelector("[data-filter]");
    const count = panel.querySelector("[data-count]");
    const items = [...panel.querySelectorAll("[data-item]")];
    if (!field || !items.length) return;
    const said = items.map((item) => item.dataset.item.toLowerCase());
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, place) => {
        item.hidden = !words.every((word) => said[place].includes(word));
        shown += !item.hidden;
      });
      if (count) count.textContent = `${shown} of ${items.length}`;
    });
  }
})();

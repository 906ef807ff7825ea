"use strict";
// Panels say in their readout what the mark under the mouse, or the focused one, stands for. A click keeps it there until the
// next click or Escape. Arrow keys go from mark to mark. All text is set as text, never as markup.
(() => {
  for (const panel of document.querySelectorAll(".panel")) {
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
    const show = (mark) => { readout.textContent = texts.get(locked || mark) ?? hint; };
    const lock = (mark) => {
      if (locked) locked.classList.remove("locked");
      locked = mark === locked ? null : mark;
      if (locked) locked.classList.add("locked");
      show(mark);
    };
    const focus = (mark) => {
      for (const other of marks) other.tabIndex = other === mark ? 0 : -1;
      mark.focus();
    };
    panel.addEventListener("pointerover", (event) => { if (markOf(event)) show(markOf(event)); });
    panel.addEventListener("pointerleave", () => show(marks.includes(document.activeElement) ? document.activeElement : null));
    panel.addEventListener("focusin", (event) => { if (markOf(event)) show(markOf(event)); });
    panel.addEventListener("click", (event) => { if (markOf(event)) { lock(markOf(event)); focus(markOf(event)); } });
    panel.addEventListener("keydown", (event) => {
      const mark = markOf(event);
      if (event.key === "Escape") lock(locked);
      if (!mark) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) focus(marks[Math.min(Math.max(marks.indexOf(mark) + step, 0), marks.length - 1)]);
      else if (event.key === "Enter" || event.key === " ") lock(mark);
      else return;
      event.preventDefault();
    });
  }
})();

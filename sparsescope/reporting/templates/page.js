"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const theme = read("theme");
  const dataKeys = new Set(theme.data_keys);
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const rgba = /^rgba\((\d+), ?(\d+), ?(\d+), ?([\d.]+)\)$/;
  const hex = (parts) => "#" + parts.map((part) => Number(part).toString(16).padStart(2, "0")).join("");

  // Every light color has a dark twin; data and words are left alone.
  function dark(value) {
    if (typeof value === "string") {
      const found = rgba.exec(value);
      if (!found) return Object.hasOwn(theme.twins, value) ? theme.twins[value] : value;
      const twin = theme.twins[hex(found.slice(1, 4))];
      if (!twin) return value;
      const part = (start) => parseInt(twin.slice(start, start + 2), 16);
      return `rgba(${part(1)},${part(3)},${part(5)},${found[4]})`;
    }
    if (Array.isArray(value)) return value.map(dark);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, dataKeys.has(key) ? item : dark(item)]));
    }
    return value;
  }

  const mode = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const figures = [...document.querySelectorAll("[data-figure]")].map((node) => ({ node, spec: read(node.dataset.figure) }));

  function draw(figure, name, width) {
    const turn = name === "dark" ? dark : structuredClone;
    const layout = turn(figure.spec.layout);
    layout.template = theme.templates[name];
    layout.autosize = !width;
    if (width) layout.width = width;
    const config = {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", locale: "en",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: `${theme.name}-${figure.node.id}` },
    };
    return window.Plotly.react(figure.node, turn(figure.spec.data), layout, config);
  }

  // A figure in a folded part has no size yet: it is drawn when the part is opened. (A folded table is no place for one.)
  const folded = (figure) => figure.node.closest("details:not([open])") !== null;
  const drawAll = (name, width) => figures.filter((figure) => !folded(figure)).forEach((figure) => draw(figure, name, width));
  for (const part of document.querySelectorAll("details.run")) {
    part.addEventListener("toggle", () => {
      if (part.open) figures.filter((figure) => part.contains(figure.node) && !folded(figure)).forEach((figure) => draw(figure, mode()));
    });
  }

  const toggle = document.getElementById("toggle-theme");
  const label = () => { if (toggle) toggle.textContent = mode() === "dark" ? "Light colors" : "Dark colors"; };
  if (toggle) {
    toggle.addEventListener("click", () => {
      root.dataset.theme = mode() === "dark" ? "light" : "dark";
      label();
      drawAll(mode());
    });
  }
  system.addEventListener("change", () => { label(); drawAll(mode()); });
  window.addEventListener("beforeprint", () => drawAll("light", 680));
  window.addEventListener("afterprint", () => drawAll(mode()));
  label();

  // One figure at a time, so that the page can be read while the others are drawn.
  (async () => {
    const open = figures.filter((figure) => !folded(figure));
    for (const figure of open) {
      await draw(figure, mode());
      await new Promise((next) => setTimeout(next, 0));
    }
    root.dataset.drawn = String(open.length);
  })();
})();

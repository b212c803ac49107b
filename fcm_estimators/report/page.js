"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const plot = byId("plot");
  const config = { responsive: true, displaylogo: false, scrollZoom: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const MISSING = 65535;

  // Columns are decoded when they are first shown.
  const integers = (column) => {
    if (!column.integers) {
      const text = atob(column.data);
      const bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      column.integers = column.kind === "categories" ? bytes : new Uint16Array(bytes.buffer);
    }
    return column.integers;
  };
  const numbers = (column) => {
    if (!column.numbers) {
      const step = (column.high - column.low) / (MISSING - 1);
      column.numbers = Float32Array.from(integers(column), (v) => (v === MISSING ? NaN : column.low + v * step));
    }
    return column.numbers;
  };
  const pick = (values, rows) => {
    const out = new Float32Array(rows.length);
    for (let i = 0; i < rows.length; i++) out[i] = values[rows[i]];
    return out;
  };
  const column = (index) => data.columns[Number(index)];
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  const fill = (select, wanted) => {
    const groups = new Map();
    data.columns.forEach((entry, i) => {
      if (!wanted(entry)) return;
      if (!groups.has(entry.group)) {
        const group = document.createElement("optgroup");
        group.label = entry.group;
        select.append(group);
        groups.set(entry.group, group);
      }
      groups.get(entry.group).append(new Option(entry.name, String(i)));
    });
  };
  const canBeAxis = (entry) => entry.group === "Embedding" || entry.group === "Markers";
  fill(byId("x"), canBeAxis);
  fill(byId("y"), canBeAxis);
  fill(byId("colour"), (entry) => entry.group !== "Embedding");
  data.views.forEach((view, i) => byId("view").append(new Option(view.name, String(i))));
  byId("view").append(new Option("as chosen below", ""));
  byId("size").value = String(data.point_size);

  const hidden = new Set();
  const axis = (index) => {
    const entry = column(index);
    const shown = { title: { text: plain(entry.name) }, zeroline: false, showgrid: false, showline: true, ticks: "outside" };
    if (entry.ticks) Object.assign(shown, { tickvals: entry.ticks[0], ticktext: entry.ticks[1] });
    if (entry.group === "Embedding") Object.assign(shown, { showticklabels: false, ticks: "" });
    return shown;
  };
  const outlines = () => {
    const view = data.views[byId("view").value];
    return ((view && view.outlines) || []).map((line) => ({
      type: "scatter", mode: "lines", name: line.name, x: line.x, y: line.y, hoverinfo: "name",
      line: { color: line.colour, dash: line.dash, width: 2.5 },
    }));
  };
  const points = () => {
    const entry = column(byId("colour").value);
    const x = numbers(column(byId("x").value));
    const y = numbers(column(byId("y").value));
    const size = Number(byId("size").value);
    const base = { type: "scattergl", mode: "markers", hovertemplate: "%{x:.3f}, %{y:.3f}<extra>%{fullData.name}</extra>" };
    if (entry.kind === "numbers") {
      const marker = {
        size, opacity: 0.7, color: numbers(entry), colorscale: "Viridis", cmin: entry.colour_range[0], cmax: entry.colour_range[1],
        colorbar: { title: { text: plain(entry.name), side: "right" }, thickness: 14, ...(entry.ticks ? { tickvals: entry.ticks[0], ticktext: entry.ticks[1] } : {}) },
      };
      return [{ ...base, x, y, name: plain(entry.name), marker }];
    }
    const drawn = entry.categories.map(() => 0);
    integers(entry).forEach((code) => { if (code < drawn.length) drawn[code]++; });
    const rows = drawn.map((n) => new Uint32Array(n));
    const next = drawn.map(() => 0);
    integers(entry).forEach((code, row) => { if (code < rows.length) rows[code][next[code]++] = row; });
    // Large populations first, so that they do not cover the small ones.
    const order = rows.map((_, i) => i).sort((a, b) => rows[b].length - rows[a].length);
    return order.filter((i) => !hidden.has(entry.categories[i])).map((i) => ({
      ...base, x: pick(x, rows[i]), y: pick(y, rows[i]), customdata: rows[i], name: plain(entry.categories[i]),
      marker: { size, opacity: 0.7, color: entry.colours[i] },
    }));
  };
  const legend = () => {
    const entry = column(byId("colour").value);
    const box = byId("shown");
    box.replaceChildren(box.firstElementChild);
    box.hidden = entry.kind === "numbers";
    (entry.categories || []).forEach((name, i) => {
      const label = document.createElement("label");
      const check = document.createElement("input");
      const swatch = document.createElement("span");
      check.type = "checkbox";
      check.checked = !hidden.has(name);
      check.addEventListener("change", () => { check.checked ? hidden.delete(name) : hidden.add(name); draw(false); });
      swatch.className = "swatch";
      swatch.style.background = entry.colours[i];
      label.append(check, swatch, `${name} (${entry.counts[i].toLocaleString("en")})`);
      box.append(label);
    });
  };
  const draw = (newAxes) => {
    const layout = {
      template: "none", font: { family: "system-ui, sans-serif", size: 13 }, margin: { l: 64, r: 16, t: 16, b: 52 },
      xaxis: axis(byId("x").value), yaxis: axis(byId("y").value), showlegend: outlines().length > 0,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest", dragmode: "pan",
    };
    if (!newAxes && plot.layout) {
      layout.xaxis.range = plot.layout.xaxis.range;
      layout.yaxis.range = plot.layout.yaxis.range;
    }
    const cells = points();
    cells.forEach((trace) => { trace.showlegend = false; });
    const [across, up] = [column(byId("x").value), column(byId("y").value)];
    const [x, y] = [numbers(across), numbers(up)];
    const nShown = x.reduce((n, value, i) => n + (Number.isNaN(value) || Number.isNaN(y[i]) ? 0 : 1), 0);
    const missing = nShown < x.length ? ` ${(x.length - nShown).toLocaleString("en")} cells have no values here.` : "";
    byId("seen").textContent = `${across.name} and ${up.name}, coloured by ${column(byId("colour").value).name}.${missing}`;
    return Plotly.react(plot, [...cells, ...outlines()], layout, config);
  };
  const raw = (entry, value) => {
    if (!entry.raw) return value.toPrecision(4);
    const [scaled, values] = entry.raw;
    const at = (value - scaled[0]) / (scaled[1] - scaled[0]);
    const low = Math.max(0, Math.min(scaled.length - 2, Math.floor(at)));
    return (values[low] + (at - low) * (values[low + 1] - values[low])).toPrecision(4);
  };
  const showCell = (row) => {
    const lines = data.columns.filter((entry) => entry.group !== "Embedding").map((entry) => {
      if (entry.kind === "categories") return [entry.name, entry.categories[integers(entry)[row]] || ""];
      const value = numbers(entry)[row];
      return [entry.name, Number.isNaN(value) ? "" : raw(entry, value)];
    });
    if (data.events) lines.unshift(["event in the file", String(data.events[row])]);
    byId("cell").replaceChildren(...lines.map(([name, text]) => {
      const line = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      term.textContent = name;
      value.textContent = text;
      line.append(term, value);
      return line;
    }));
  };
  const zoom = (factor) => {
    const update = {};
    for (const name of ["xaxis", "yaxis"]) {
      const [low, high] = plot.layout[name].range;
      const middle = (low + high) / 2;
      const half = ((high - low) / 2) * factor;
      update[`${name}.range`] = [middle - half, middle + half];
    }
    return Plotly.relayout(plot, update);
  };
  const choose = () => {
    const view = data.views[byId("view").value];
    if (view) {
      byId("x").value = String(view.x);
      byId("y").value = String(view.y);
    }
    draw(true);
  };
  byId("view").addEventListener("change", choose);
  for (const id of ["x", "y"]) byId(id).addEventListener("change", () => { byId("view").value = ""; draw(true); });
  byId("colour").addEventListener("change", () => { hidden.clear(); legend(); draw(false); });
  byId("size").addEventListener("input", () => draw(false));
  byId("closer").addEventListener("click", () => zoom(0.7));
  byId("farther").addEventListener("click", () => zoom(1 / 0.7));
  byId("whole").addEventListener("click", () => draw(true));
  // Open folded tables for printing.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((entry) => { entry.open = true; }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  byId("colour").value = String(data.colour);
  byId("view").selectedIndex = 0;
  const first = data.views[0];
  byId("x").value = String(first ? first.x : data.axes[0]);
  byId("y").value = String(first ? first.y : data.axes[1]);
  legend();
  draw(true).then(() => {
    plot.on("plotly_hover", (event) => {
      const point = event.points.find((p) => p.fullData.type === "scattergl");
      if (point) showCell(point.customdata === undefined ? point.pointIndex : point.customdata);
    });
    document.documentElement.dataset.ready = "true";
    for (const group of ["positive", "gates", "why"]) {
      const id = group === "gates" ? "gate" : group;
      data[group].forEach((figure, i) => Plotly.newPlot(byId(`${id}-${i}`), figure.data, figure.layout, { responsive: true, displaylogo: false }));
    }
    document.documentElement.dataset.complete = "true";
  });
})();

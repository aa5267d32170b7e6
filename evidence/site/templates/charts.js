"use strict";
// Charts as SVG. Everything is made by the DOM: no text from a run ever becomes markup.
const charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  // On a phone the drawing is as wide as the screen, so that its letters keep their size.
  const WIDTH = Math.max(300, Math.min(560, document.documentElement.clientWidth - 52)), HEIGHT = WIDTH < 450 ? 240 : 300, LEFT = 58, RIGHT = 12, TOP = 8, BOTTOM = 34;
  const CIVIDIS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];

  function fill(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "on") { for (const [event, call] of Object.entries(value)) element.addEventListener(event, call); }
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
    }
    for (const child of children) element.append(child);
    return element;
  }
  const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(NS, name), attributes, children);

  function plain(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
    return String(Number(value.toPrecision(4)));
  }

  function linearTicks(low, high) {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }
  function logTicks(low, high) {
    const ticks = [];
    const wide = Math.log10(high / low) > 3;
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of wide ? [1] : [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(Number(tick.toPrecision(3)));
      }
    return ticks;
  }

  function span(lists, keep) {
    let low = Infinity, high = -Infinity;
    for (const list of lists) for (const value of list) if (keep(value)) { if (value < low) low = value; if (value > high) high = value; }
    if (low > high) return null;
    if (low === high) { const pad = Math.abs(low) * 0.05 || 1; return [low - (low - pad > 0 || low <= 0 ? pad : low / 2), high + pad]; }
    return [low, high];
  }

  // series: [{label, colour, dash, x, y}]; y holds null where a value was not finite.
  function lines(title, series, { xLabel, log }) {
    const finite = (value) => value !== null && Number.isFinite(value) && (!log || value > 0);
    const xs = span(series.map((s) => s.x), (v) => v !== null), ys = span(series.map((s) => s.y), finite);
    const figure = html("figure", { "data-metric": title }, html("h3", {}, title + (log ? " (log)" : "")));
    if (!xs || !ys) { figure.append(html("p", { class: "soft" }, "nothing that can be drawn")); return figure; }
    const place = log ? Math.log10 : (v) => v;
    const [y0, y1] = ys.map(place), pad = log ? 0 : (y1 - y0) * 0.04;
    const px = (v) => LEFT + (WIDTH - LEFT - RIGHT) * (v - xs[0]) / (xs[1] - xs[0]);
    const py = (v) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (place(v) - y0 + pad) / (y1 - y0 + 2 * pad || 1);
    const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
    for (const tick of log ? logTicks(...ys) : linearTicks(ys[0], ys[1])) {
      root.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(tick), y2: py(tick) }));
      root.append(svg("text", { x: LEFT - 6, y: py(tick) + 4, "text-anchor": "end" }, plain(tick)));
    }
    for (const tick of linearTicks(xs[0], xs[1])) root.append(svg("text", { x: px(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, plain(tick)));
    root.append(svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, xLabel));
    for (const s of series) {
      let path = "", pen = "M", points = 0;
      s.x.forEach((x, k) => {
        if (x === null || !finite(s.y[k])) { pen = "M"; return; }
        path += `${pen}${px(x).toFixed(1)},${py(s.y[k]).toFixed(1)}`; pen = "L"; points++;
      });
      if (points === 1) path += "h0.01";
      if (!points) continue;
      const last = s.y.findLast(finite);
      root.append(svg("path", { class: "curve", d: path, stroke: s.colour, "stroke-dasharray": s.dash, "stroke-linecap": points === 1 ? "round" : "butt",
        style: points === 1 ? "stroke-width:6" : null }, svg("title", {}, `${s.label}: last ${plain(last)}`)));
    }
    figure.append(root);
    return figure;
  }

  function shade(part) {
    const place = Math.max(0, Math.min(0.999999, part)) * (CIVIDIS.length - 1), k = Math.floor(place), t = place - k;
    const digits = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const [a, b] = [digits(CIVIDIS[k]), digits(CIVIDIS[k + 1])];
    return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(",")})`;
  }

  // map: {layers, epochs, values: a row a layer}; a row of cells a layer, the input's at the top.
  function heat(title, map) {
    const finite = (v) => v !== null && Number.isFinite(v);
    const range = span(map.values, finite);
    const figure = html("figure", { "data-map": title }, html("h3", {}, title));
    if (!range) { figure.append(html("p", { class: "soft" }, "nothing that can be drawn")); return figure; }
    const positive = span(map.values, (v) => finite(v) && v > 0);
    const log = positive !== null && positive[1] > 10 * positive[0];
    const [low, high] = log ? positive.map(Math.log10) : range;
    const label = Math.min(190, Math.round(WIDTH * 0.38)), letters = Math.floor(label / 5.6), cell = Math.max(10, Math.min(18, 420 / map.layers.length)), height = cell * map.layers.length;
    const width = WIDTH - label - 8, root = svg("svg", { viewBox: `0 0 ${WIDTH} ${height + 52}`, role: "img", "aria-label": title });
    map.layers.forEach((layer, row) => {
      const name = layer.replace(/\.weight$/, "");
      if (cell >= 9) root.append(svg("text", { x: label - 6, y: row * cell + cell * 0.75, "text-anchor": "end", style: `font-size:${Math.min(10, cell - 1)}px` },
        name.length > letters ? "…" + name.slice(1 - letters) : name));
      map.values[row].forEach((value, column) => {
        if (!finite(value) || (log && value <= 0)) return;
        const part = ((log ? Math.log10(value) : value) - low) / (high - low || 1);
        const step = width / map.epochs.length;
        root.append(svg("rect", { x: label + column * step, y: row * cell, width: step + 0.3, height: cell + 0.3, fill: shade(part) },
          svg("title", {}, `${layer}, epoch ${plain(map.epochs[column])}: ${plain(value)}`)));
      });
    });
    root.append(svg("text", { x: label, y: height + 14 }, `epoch ${plain(map.epochs[0])}`));
    root.append(svg("text", { x: label + width, y: height + 14, "text-anchor": "end" }, `epoch ${plain(map.epochs[map.epochs.length - 1])}`));
    for (let k = 0; k < 40; k++) root.append(svg("rect", { x: label + k * width / 40, y: height + 24, width: width / 40 + 0.3, height: 10, fill: shade(k / 39) }));
    root.append(svg("text", { x: label, y: height + 48 }, plain(log ? 10 ** low : low) + (log ? " (log)" : "")));
    root.append(svg("text", { x: label + width, y: height + 48, "text-anchor": "end" }, plain(log ? 10 ** high : high)));
    figure.append(root);
    return figure;
  }

  function swatch(colour, dash) {
    return svg("svg", { viewBox: "0 0 26 9" }, svg("line", { x1: 0, x2: 26, y1: 4.5, y2: 4.5, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }));
  }
  return { html, svg, lines, heat, swatch, plain };
})();

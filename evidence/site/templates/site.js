"use strict";
// The pages' state is the address: #opt=adamp&wd=0.01&seed=0&curve=norm%2Fmean. Data files call experiments, index, chunk.
const site = (() => {
  const { html } = charts;
  const DASHES = [null, "7 4", "2 3", "9 3 2 3", "4 2", "1 4"];
  // Of the settings of one optimizer; none is an optimizer's colour.
  const SETTINGS = ["#3e4989", "#355f8d", "#2c718e", "#25848e", "#1f978b", "#24aa83", "#3bbb75", "#63cb5f"];
  const FILTERS = [["experiment", "experiment", "experiment"], ["opt", "optimizer", "opt"], ["wd", "weight decay", "weight_decay"],
    ["seed", "seed", "seed"], ["scale", "scale", "scale"], ["data", "data set", "data"], ["status", "status", "status"]];
  const DRAWN = 40, ROWS = 200, MAPS = 4;
  const PREFERRED = ["norm/mean", "effective_step/mean", "train/loss"];
  const store = { experiments: [], colours: {}, runs: [], indexes: {}, chunks: {}, loading: {}, rows: ROWS, turn: 0 };
  const at = (id) => document.getElementById(id);
  const page = () => document.body.dataset.page, base = () => document.body.dataset.base;
  const params = () => new URLSearchParams(location.hash.slice(1));
  const keyOf = (run) => `${run.experiment}/${run.folder}`;

  function change(edit) {
    const now = params();
    edit(now);
    location.hash = now.toString();
  }
  const experiments = (given) => Object.assign(store, given);
  function index(given) {
    store.indexes[given.experiment] = given;
    for (const row of given.runs) {
      const run = { experiment: given.experiment, scoreName: given.score };
      given.keys.forEach((key, k) => { run[key] = row[k]; });
      store.runs.push(run);
    }
  }
  const chunk = ([experiment, number, rows]) => { store.chunks[`${experiment}/${number}`] = rows; };

  function script(source) {
    store.loading[source] ??= new Promise((done, fail) => {
      const element = html("script", { src: source, on: { load: done, error: () => fail(new Error(source)) } });
      document.head.append(element);
    });
    return store.loading[source];
  }
  const folder = (experiment) => `${base()}${encodeURIComponent(experiment)}/data/`;
  async function details(run) {
    const key = `${run.experiment}/${run.chunk}`;
    if (!store.chunks[key]) await script(`${folder(run.experiment)}${String(run.chunk).padStart(4, "0")}.js`);
    const first = store.indexes[run.experiment].runs.findIndex((row) => row[store.indexes[run.experiment].keys.indexOf("chunk")] === run.chunk);
    const place = store.runs.filter((other) => other.experiment === run.experiment).indexOf(run);
    return store.chunks[key][place - first];
  }

  // Filters ------------------------------------------------------------------------------------------------------
  const text = (value) => value === null || value === undefined ? "none" : String(value);
  function filtered() {
    const chosen = params();
    return store.runs.filter((run) => FILTERS.every(([key, , field]) => !chosen.has(key) || chosen.getAll(key).includes(text(run[field]))));
  }
  function showFilters() {
    const chosen = params();
    at("filters").replaceChildren(...FILTERS.flatMap(([key, name, field]) => {
      const values = [...new Set(store.runs.map((run) => text(run[field])))].sort((a, b) => a - b || a.localeCompare(b));
      if (values.length < 2 && !chosen.has(key)) return [];
      const select = html("select", { name: key, on: { change: (event) => change((now) => { now.delete(key); now.delete("run"); if (event.target.value !== "*") now.set(key, event.target.value); }) } },
        html("option", { value: "*" }, "all"), ...values.map((value) => html("option", { value, selected: chosen.get(key) === value ? "" : null }, value)));
      return [html("label", {}, name, select)];
    }), html("button", { type: "button", on: { click: () => change((now) => FILTERS.forEach(([key]) => { now.delete(key); now.delete("run"); })) } }, "all runs"));
  }

  // Curves -------------------------------------------------------------------------------------------------------
  function styles(runs) {
    const decays = [...new Set(runs.map((run) => text(run.weight_decay)))].sort((a, b) => a - b);
    const settings = [...new Set(runs.map((run) => setting(run)))];
    const byOptimizer = new Set(runs.map((run) => run.opt)).size > 1 || settings.length === 1;
    return (run, facts) => ({
      colour: byOptimizer ? store.colours[run.opt] || facts.colour : SETTINGS[settings.indexOf(setting(run)) % SETTINGS.length],
      dash: byOptimizer ? DASHES[decays.indexOf(text(run.weight_decay)) % DASHES.length] : DASHES[Math.floor(settings.indexOf(setting(run)) / SETTINGS.length) % DASHES.length],
    });
  }
  const setting = (run) => `${run.opt}, wd=${text(run.weight_decay)}, lr=${text(run.lr)}` + (page() === "compare" ? `, ${run.experiment}` : "");

  function chips(known, chosen) {
    at("metrics").replaceChildren(...known.map((metric) => html("button", { type: "button", "aria-pressed": String(chosen.includes(metric)), on: {
      click: () => change((now) => { now.delete("curve"); (chosen.includes(metric) ? chosen.filter((m) => m !== metric) : [...chosen, metric]).forEach((m) => now.append("curve", m)); }) } }, metric)));
  }
  function axes() {
    const now = params();
    const toggle = (key, on, name) => html("button", { type: "button", "aria-pressed": String(now.get(key) === on), on: { click: () => change((next) => { if (next.get(key) === on) next.delete(key); else next.set(key, on); }) } }, name);
    return [toggle("x", "step", "over steps"), toggle("y", "log", "logarithmic")];
  }
  function series(pairs, metric, style) {
    const overSteps = params().get("x") === "step";
    return pairs.filter(([, facts]) => facts.curves[metric]).map(([run, facts]) => {
      const [steps, epochs, values] = facts.curves[metric];
      return { label: run.name, ...style(run, facts), x: overSteps ? steps : epochs, y: values };
    });
  }
  const options = () => ({ xLabel: params().get("x") === "step" ? "step" : "epoch", log: params().get("y") === "log" });
  function chosenMetrics(pairs, scores) {
    const known = [...new Set(pairs.flatMap(([, facts]) => Object.keys(facts.curves)))].sort();
    const asked = params().getAll("curve").filter((metric) => known.includes(metric));
    return [known, asked.length ? asked : [...new Set([...scores, ...PREFERRED])].filter((metric) => known.includes(metric))];
  }
  function legend(runs, pairs, style) {
    const groups = new Map();
    for (const [run, facts] of pairs) { const found = groups.get(setting(run)) || { ...style(run, facts), count: 0 }; found.count++; groups.set(setting(run), found); }
    at("legend").replaceChildren(...[...groups].map(([name, { colour, dash, count }]) => html("span", {}, charts.swatch(colour, dash), ` ${name} (${count})`)));
  }

  async function explore() {
    const turn = ++store.turn;
    showFilters();
    const found = filtered(), ticked = params().getAll("run");
    const shown = ticked.length ? store.runs.filter((run) => ticked.includes(keyOf(run))) : found.slice(0, DRAWN);
    at("shown").textContent = `${found.length} of ${plural(store.runs.length, "run")}; ${shown.length} drawn` + (found.length > shown.length ? ": filter, or tick runs in the list" : "");
    table(found, new Set(shown.map(keyOf)), ticked);
    const pairs = await Promise.all(shown.map(async (run) => [run, await details(run)]));
    if (turn !== store.turn) return;
    const style = styles(shown), scores = [...new Set(shown.map((run) => run.scoreName).filter(Boolean))].slice(0, 3);
    const [known, chosen] = chosenMetrics(pairs, scores);
    chips(known, chosen);
    at("axes").replaceChildren(...axes());
    legend(shown, pairs, style);
    const drawn = chosen.map((metric) => charts.lines(metric, series(pairs, metric, style), options()));
    if (pairs.length <= MAPS) for (const [run, facts] of pairs) drawn.push(...maps(facts, `${run.name}: `));
    at("charts").replaceChildren(...drawn);
    document.body.dataset.ready = String(turn);
  }
  const KINDS = { norm: "filter norm, layer by layer", effective_step: "effective step, layer by layer" };
  const maps = (facts, before) => Object.entries(facts.layers).map(([kind, map]) => charts.heat(before + (KINDS[kind] || kind), map));

  // Runs ---------------------------------------------------------------------------------------------------------
  const link = (run) => `${base()}run.html#${new URLSearchParams({ run: keyOf(run) })}`;
  const badge = (status) => html("span", { class: `badge ${["finished", "running", "interrupted", "failed", "cut short"].includes(status) ? status : "unknown"}` }, status);
  const epochs = (run) => charts.plain(run.epochs) + (run.planned === null || run.planned === run.epochs ? "" : ` of ${charts.plain(run.planned)}`);
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  function table(runs, drawn, ticked) {
    const tick = (run) => html("input", { type: "checkbox", "aria-label": "draw", checked: drawn.has(keyOf(run)) ? "" : null, on: { change: (event) => change((now) => {
      const kept = new Set(ticked.length ? ticked : drawn); now.delete("run");
      if (event.target.checked) kept.add(keyOf(run)); else kept.delete(keyOf(run));
      kept.forEach((key) => now.append("run", key)); }) } });
    const heads = ["", "run", "status", "optimizer", "weight decay", "lr", "seed", "score, last", "best", "epochs", "data, scale", "started (UTC)"];
    const rows = runs.slice(0, store.rows).map((run) => html("tr", {}, html("td", {}, tick(run)),
      html("td", { class: "wrap mono" }, html("a", { href: link(run) }, run.name), ...(page() === "compare" ? [html("div", { class: "soft" }, run.experiment)] : []), ...(run.note ? [html("div", { class: "note bad" }, run.note)] : [])),
      html("td", {}, badge(run.status)), ...[run.opt, run.weight_decay, run.lr, run.seed, run.score, run.best, epochs(run)].map((value) => html("td", {}, charts.plain(value))),
      html("td", {}, `${run.data}, ${run.scale}`), html("td", { class: "nowrap" }, run.started.replace("T", " "))));
    const more = runs.length > store.rows ? [html("button", { type: "button", on: { click: () => { store.rows += 5 * ROWS; explore(); } } }, `show more: ${store.rows} of ${runs.length} are listed`)] : [];
    at("runs").replaceChildren(html("table", {}, html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", {}, head)))), html("tbody", {}, ...rows)), ...more);
  }

  // A run --------------------------------------------------------------------------------------------------------
  const facts = (rows) => html("div", { class: "scroll" }, html("table", { class: "facts" }, html("tbody", {}, ...rows.map(([name, value]) => html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, value))))));
  async function showRun() {
    const key = params().get("run");
    if (!key) return;
    const experiment = key.slice(0, key.indexOf("/"));
    try { await script(`${folder(experiment)}index.js`); } catch { at("run").replaceChildren(html("p", { class: "note bad" }, `There is no experiment ${experiment} here.`)); return; }
    const run = store.runs.find((other) => keyOf(other) === key);
    if (!run) { at("run").replaceChildren(html("p", { class: "note bad" }, `There is no run ${key} here.`)); return; }
    const found = await details(run);
    document.title = run.name;
    const [known, chosen] = chosenMetrics([[run, found]], [run.scoreName]);
    const style = () => ({ colour: found.colour, dash: null });
    at("run").replaceChildren(
      html("p", { id: "back" }, html("a", { href: `${base()}${encodeURIComponent(experiment)}/index.html` }, `← All runs of ${experiment}`)),
      html("header", {}, html("p", { class: "kicker" }, `${experiment} · ${run.data} · scale ${run.scale}`),
        html("h1", {}, `${run.name} `, badge(run.status)), html("p", { class: "soft" }, found.summary)),
      ...found.notes.map((note) => html("div", { class: "note" }, note)),
      html("section", { class: "tiles" }, ...found.tiles.map(([name, value, detail]) => html("div", { class: "tile" }, html("div", { class: "name" }, name), html("div", { class: "value" }, value), html("div", { class: "detail" }, detail)))),
      html("h2", {}, "Run it again"), html("pre", { class: "note mono", id: "repeat", style: "white-space:pre-wrap" }, found.repeat),
      ...(found.report ? [html("p", {}, html("a", { href: found.report }, "Pictures of this run as files"))] : []),
      html("h2", {}, "Curves"), html("div", { class: "chips", id: "metrics" }), html("div", { class: "filters" }, ...axes()),
      html("div", { class: "charts", id: "charts" }, ...chosen.map((metric) => charts.lines(metric, series([[run, found]], metric, style), options())), ...maps(found, "")),
      html("h2", {}, "Scores"), facts(found.scores), html("h2", {}, "Provenance"), facts(found.provenance),
      html("h2", {}, "Configuration"), html("details", {}, html("summary", {}, "Resolved configuration"), html("pre", {}, found.config)));
    chips(known, chosen);
    document.body.dataset.ready = "1";
  }

  // Claims, theme, start -----------------------------------------------------------------------------------------
  function claims() {
    const chosen = params().get("verdict");
    for (const row of document.querySelectorAll("#claims tbody tr")) row.hidden = chosen !== null && row.dataset.verdict !== chosen;
    for (const button of document.querySelectorAll("#verdicts button")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === chosen));
      button.onclick = () => change((now) => { if (chosen === button.dataset.verdict) now.delete("verdict"); else now.set("verdict", button.dataset.verdict); });
    }
    document.body.dataset.ready = "1";
  }
  function theme() {
    const kept = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, set: (value) => { try { localStorage.setItem("theme", value); } catch { /* no storage: for this page only */ } } };
    const show = (value) => { if (value === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = value; at("theme").textContent = `theme: ${value}`; };
    let now = params().get("theme") || kept.get() || "auto";
    show(now);
    at("theme").onclick = () => { now = { auto: "dark", dark: "light", light: "auto" }[now] || "auto"; kept.set(now); show(now); };
  }
  function start() {
    theme();
    const draw = { experiment: explore, compare: explore, run: showRun, claims }[page()];
    if (!draw) { document.body.dataset.ready = "1"; return; }
    window.addEventListener("hashchange", draw);
    draw();
  }
  return { experiments, index, chunk, start };
})();

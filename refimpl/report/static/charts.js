/* Charts of a run's series, and its sample grids, for the report and the studio. uPlot draws; this file says what.
   Everything from data is set as text. */
"use strict";
globalThis.refimplCharts = (() => {
  const SMOOTHING = 0.02; // half-life of a smoothed series, as a share of its points
  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colourOf = (place) => `--series-${(place % 4) + 1}`;

  /* Text with what would reorder the text around it spelled out, as refimpl.printable does. */
  const printable = (text) => String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
  /* Data in a sentence: letters that are read from right to left reorder nothing beside it. */
  const isolated = (text) => element("bdi", { text });

  function element(name, { text, className, ...attributes } = {}, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = printable(text);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter(Boolean));
    return made;
  }

  /* A number for a reader: four digits, or a power of ten where it is tiny or huge. */
  function number(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e7) return value.toExponential(2);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(4)));
  }

  function bytes(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    return value >= 1e9 ? `${number(value / 1e9)} GB` : `${number(value / 1e6)} MB`;
  }
  const percent = (value) => (Number.isFinite(value) && value !== null ? `${number(100 * value)} %` : "–");
  const FORMATS = { number, bytes, percent };

  /* Exponential moving average with bias correction, so that it begins at the first value. */
  function smoothed(values) {
    const keep = 0.5 ** (1 / Math.max(1, SMOOTHING * values.length));
    let total = 0, weight = 0;
    return values.map((value) => {
      total = keep * total + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return total / weight;
    });
  }

  /* What a chart shows in words, for those who don't see it. */
  function summary(title, series, format) {
    const parts = series.filter((each) => each.values.length && !each.faint).map((each) => {
      const last = each.values.length - 1;
      return `${each.label}: ${format(each.values[0])} at step ${each.steps[0]}, ` +
        `${format(each.values[last])} at step ${each.steps[last]}`;
    });
    return `${title}. ${parts.join("; ")}. Plus and minus zoom, arrow keys move, 0 shows all.`;
  }

  const aligned = (series) => series.length
    ? uPlot.join(series.map((each) => [each.steps, each.values])) : [[]];
  const ascending = (each) => {
    let inOrder = true;
    for (let at = 1; at < each.steps.length && inOrder; at++) inOrder = each.steps[at] > each.steps[at - 1];
    if (inOrder) return each;
    const byStep = new Map(each.steps.map((step, at) => [step, each.values[at]])); // a step's last value counts
    const steps = [...byStep.keys()].sort((a, b) => a - b);
    return { ...each, steps, values: steps.map((step) => byStep.get(step)) };
  };

  /* A chart in `holder`.
     series  [{label, steps, values, colour: "--series-1", faint, dash, points}], of several runs with {run, part} of the label
     options {title, format: number | bytes | percent, logarithmic, fromZero, height, wide, onZoom(from, to)}
     returns {update(series), destroy(), zoom(from, to)} */
  function chart(holder, series, options) {
    const format = FORMATS[options.format ?? "number"];
    const plot = element("div", { className: "plot", tabindex: "0", role: "img" });
    const box = element("section", { className: options.wide ? "chart wide" : "chart" },
      element("h3", { text: options.title }), plot);
    holder.append(box);
    let shown = series.map(ascending), drawn = null, width = 0;
    const names = () => JSON.stringify(shown.map((each) => [each.label, each.colour, each.faint]));
    let built = "";

    const axis = (more) => ({
      stroke: () => tone("--soft"), grid: { stroke: () => tone("--line"), width: 1 },
      ticks: { stroke: () => tone("--line"), width: 1, size: 4 }, font: "12px system-ui, sans-serif", ...more,
    });
    function build() {
      drawn?.destroy();
      width = Math.max(200, plot.clientWidth);
      built = names();
      drawn = new uPlot({
        width, height: options.height ?? 220, legend: { markers: { width: 0, fill: (made, place) => tone(shown[place - 1]?.colour ?? colourOf(place - 1)) } }, cursor: { sync: { key: "step" }, drag: { x: true, y: false } },
        scales: {
          x: { time: false },
          y: { distr: options.logarithmic ? 3 : 1,
               range: options.fromZero ? (_, least, most) => [Math.min(0, least ?? 0), (most ?? 1) * 1.06 || 1] : undefined },
        },
        axes: [
          axis({ values: (_, ticks) => ticks.map((value) => value === null ? "" : number(value)), space: 64, size: 30 }),
          axis({ values: (_, ticks) => ticks.map((value) => value === null ? "" : format(value)), size: 62, space: 34 }),
        ],
        series: [
          { label: "step", value: (_, value) => value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US") },
          ...shown.map((each, place) => ({
            label: each.run === undefined ? each.label : labelOf(each), stroke: () => tone(each.colour ?? colourOf(place)), alpha: each.faint ? 0.35 : 1,
            width: each.faint ? 1 : 1.75, dash: each.dash, points: { show: each.points ?? each.values.length < 3, size: 6 },
            value: (_, value) => format(value),
          })),
        ],
        hooks: { setScale: [(made, key) => key === "x" && options.onZoom?.(made.scales.x.min, made.scales.x.max)] },
      }, aligned(shown), plot);
      // uPlot's legend toggles series on a click; keys do the same.
      plot.querySelectorAll(".u-legend .u-series th").forEach((head) => {
        head.tabIndex = 0;
        head.addEventListener("keydown", (event) => {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); head.click(); }
        });
      });
      describe();
    }
    function labelOf({ run, part }) { return element("span", {}, isolated(run), part && `, ${part}`); }
    function describe() { plot.setAttribute("aria-label", summary(options.title, shown, format)); }
    function ends() {
      const steps = shown.flatMap((each) => each.steps.length ? [each.steps[0], each.steps[each.steps.length - 1]] : []);
      return [Math.min(...steps), Math.max(...steps)];
    }
    function zoom(from, to) {
      const [first, last] = ends();
      const least = Math.max(first, from), most = Math.min(last, to);
      if (drawn && most > least) drawn.setScale("x", { min: least, max: most });
    }
    plot.addEventListener("keydown", (event) => {
      if (event.target !== plot || !drawn) return;
      const { min, max } = drawn.scales.x, span = max - min;
      const acts = {
        "+": () => zoom(min + span / 4, max - span / 4), "=": () => zoom(min + span / 4, max - span / 4),
        "-": () => zoom(min - span / 2, max + span / 2), "0": () => zoom(...ends()), Escape: () => zoom(...ends()),
        ArrowLeft: () => zoom(Math.max(ends()[0], min - span / 8), Math.max(ends()[0], min - span / 8) + span),
        ArrowRight: () => zoom(Math.min(ends()[1], max + span / 8) - span, Math.min(ends()[1], max + span / 8)),
      };
      if (acts[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); acts[event.key](); }
    });
    const resized = new ResizeObserver(() => {
      const now = Math.max(200, plot.clientWidth);
      if (drawn && now !== width) { width = now; drawn.setSize({ width, height: options.height ?? 220 }); }
    });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const repaint = () => drawn?.redraw();
    build();
    resized.observe(plot);
    dark.addEventListener("change", repaint);
    return {
      zoom,
      update(next) {
        const [first, last] = shown.some((each) => each.steps.length) ? ends() : [0, 0];
        const scale = drawn.scales.x, whole = scale.min <= first && scale.max >= last;
        const { min, max } = scale;
        shown = next.map(ascending);
        if (names() !== built) { build(); return; }
        drawn.setData(aligned(shown), whole);
        if (!whole) drawn.setScale("x", { min, max });
        describe();
      },
      destroy() { resized.disconnect(); dark.removeEventListener("change", repaint); drawn.destroy(); box.remove(); },
    };
  }

  /* The charts of one or several runs. runs  [{name, series: {loss: {steps, values}, …}}]
     returns  [{key, title, series, format, logarithmic, fromZero, wide}], those without a value left out */
  function chartsOf(runs) {
    const several = runs.length > 1;
    const named = (run, part) => ({ label: part ? `${run}, ${part}` : run, run, part });
    const of = (key, more = {}) => runs.flatMap((run, place) => run.series[key]
      ? [{ label: several ? run.name : more.label ?? "value", colour: colourOf(place), ...run.series[key], ...more,
           ...(several ? named(run.name, more.label) : {}) }] : []);
    const withSmooth = (key) => of(key).flatMap((each) => each.values.length < 20 ? [each] : [
      ...(several ? [] : [{ ...each, label: "each row", faint: true, points: false }]),
      { ...each, label: several ? each.label : "smoothed", values: smoothed(each.values), points: false }]);
    const heldout = (series) => series.map((each) => ({ ...each, dash: several ? [6, 4] : undefined, points: each.values.length < 60,
      colour: several ? each.colour : "--series-2" }));
    const found = [
      { key: "loss", title: "Loss", wide: true, height: 280, fromZero: true,
        series: [...withSmooth("loss"), ...heldout(of("heldout_loss", { label: "held-out" }))] },
      ...decileCharts(runs, several),
      { key: "learning_rate", title: "Learning rate", series: of("learning_rate"), fromZero: true },
      { key: "images_per_second", title: "Images per second", series: of("images_per_second"), fromZero: true },
      { key: "mfu", title: "MFU, share of the card's peak arithmetic", series: of("mfu"), fromZero: true, format: "percent" },
      { key: "gradient_norm", title: "Gradient norm", series: withSmooth("gradient_norm"), fromZero: true },
      { key: "loader_stall", title: "Time waiting for images", series: of("loader_stall"), fromZero: true, format: "percent" },
      { key: "ema_drift", title: "Distance between weights and their average", series: of("ema_drift"), fromZero: true },
      { key: "peak_memory", title: "Peak memory", series: of("peak_memory"), fromZero: true, format: "bytes" },
    ];
    const known = new Set([...found.map((each) => each.key), "heldout_loss", "epoch"]);
    const others = [...new Set(runs.flatMap((run) => Object.keys(run.series)))]
      .filter((key) => !known.has(key) && !key.startsWith("loss_by_timestep/"));
    found.push(...others.map((key) => ({ key, title: key, series: of(key) })));
    return found.filter((each) => each.series.some((one) => one.values.length));
  }

  /* Loss by tenth of the timesteps: early and late tenths apart in one chart for one run, the two ends for several. */
  function decileCharts(runs, several) {
    const tenth = (run, place) => run.series[`loss_by_timestep/${place}`];
    const name = (place) => `${place} – ${place + 1} tenths`;
    if (several) {
      return [0, 5, 9].map((place) => ({
        key: `loss_by_timestep/${place}`, title: `Loss, timesteps ${name(place)} of the way to noise`, fromZero: true,
        series: runs.flatMap((run, at) => tenth(run, place)
          ? [{ label: run.name, run: run.name, colour: colourOf(at), ...tenth(run, place), values: smoothed(tenth(run, place).values), points: false }] : []),
      }));
    }
    return [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]].map((places) => ({
      key: `loss_by_timestep/${places[0]}`, fromZero: true,
      title: `Loss by timestep, tenths ${places[0] + 1} to ${places[4] + 1} of the way to noise, smoothed`,
      series: places.flatMap((place, at) => tenth(runs[0], place)
        ? [{ label: `tenth ${place + 1}`, colour: at < 4 ? colourOf(at) : "--ink", ...tenth(runs[0], place),
             values: smoothed(tenth(runs[0], place).values), points: false }] : []),
    }));
  }

  /* Sample grids in `holder`, with a slider over steps.
     grids  [{step, url, prompts, columns, width, height, gap}]: the picture has a row for each prompt */
  function samples(holder, grids) {
    const output = element("output", { for: "sample-step" });
    const slider = element("input", { type: "range", min: "0", max: String(Math.max(0, grids.length - 1)), step: "1",
      id: "sample-step", "aria-label": "step of the samples" });
    const rows = element("div", { className: "sample-rows" });
    holder.append(element("div", { className: "samples" }, element("div", { className: "slider" }, slider, output), rows));
    let at = grids.length - 1, list = grids;
    function show() {
      const grid = list[at];
      if (!grid) return;
      slider.max = String(list.length - 1);
      slider.value = String(at);
      slider.disabled = list.length < 2;
      output.textContent = `step ${grid.step.toLocaleString("en-US")}`;
      slider.setAttribute("aria-valuetext", output.textContent);
      const count = Math.max(1, grid.prompts.length);
      const high = (grid.height - grid.gap * (count - 1)) / count;
      rows.replaceChildren(...Array.from({ length: count }, (_, place) => {
        const prompt = grid.prompts[place] ?? "", strip = element("div", { className: "strip", role: "img",
          "aria-label": `samples of “${prompt || "no prompt"}” at step ${grid.step}` });
        strip.style.maxWidth = `${Math.max(grid.width, 4 * 110)}px`;
        strip.style.aspectRatio = `${grid.width} / ${high}`;
        strip.style.backgroundImage = `url("${encodeURI(grid.url)}")`;
        strip.style.backgroundSize = `100% ${(100 * grid.height) / high}%`;
        strip.style.backgroundPosition = `0 ${count > 1 ? (100 * place * (high + grid.gap)) / (grid.height - high) : 0}%`;
        return element("div", { className: "row" }, element("span", { className: "label", text: prompt || "(empty prompt)" }), strip);
      }));
    }
    slider.addEventListener("input", () => { at = Number(slider.value); show(); });
    show();
    return { update(next) {
      if (next.length === list.length) return;
      const follow = at === list.length - 1;
      list = next;
      at = follow ? list.length - 1 : Math.min(at, list.length - 1);
      show();
    } };
  }

  return { element, isolated, printable, number, bytes, percent, smoothed, chart, chartsOf, samples, summary };
})();

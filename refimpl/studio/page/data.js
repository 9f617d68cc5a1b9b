/* The data set: what matters most of it, filters, a wall of thumbnails, and one image with the crop that a visit takes. */
import { ask } from "./api.js";
import { answered, failed, tell } from "./status.js";
import { openWall } from "./wall.js";

const { element, isolated, number } = refimplCharts;
const SEVERITY = { problem: ["Problem", "tone-bad"], warning: ["Warning", "tone-warning"], note: ["Note", "tone-note"] };
const PROBLEMS = { "": "all images", enlarged: "enlarged", near_extreme: "near the most extreme aspect", too_far: "too far from every bucket",
  uncaptioned: "without a caption" };

export function openData(view) {
  let closed = false, wall = null, timer = 0, filters = {}, visit = 0, opened = null;
  const heading = element("h2", { text: "Data" }), headlines = element("ul", { className: "headlines" });
  const tools = element("form", { className: "tools", "aria-label": "filters" }), count = element("p", { className: "soft small", role: "status" });
  const holder = element("div"), look = element("aside", { className: "look", "aria-label": "the chosen image" },
    element("p", { className: "soft", text: "Choose an image: click it, or use the arrow keys." }));
  const left = element("div");
  view.replaceChildren(heading, headlines, tools, count, element("div", { className: "data-split" }, holder, look), left);
  tools.addEventListener("submit", (event) => event.preventDefault());

  const failing = (error) => { if (error.status === 0) failed(error); else tell("data", [error.message]); };

  async function about() {
    let data;
    try { data = await ask("/api/data"); } catch (error) { failing(error); timer = setTimeout(about, 2000); return; }
    if (closed) return;
    answered();
    tell("data", [data.problem]);
    if (data.problem) { timer = setTimeout(about, 2000); return; }
    heading.replaceChildren(`${data.images.toLocaleString("en-US")} images in `, isolated(data.source));
    headlines.replaceChildren(...data.headlines.map(headline));
    if (!wall) {
      makeTools(data);
      makeProblems(data.problems);
      wall = openWall(holder, fetchRows, (row) => show(row.row), failing);
      await apply({});
    } else fillTags(data.tags);
    if (data.tags === null || data.weights === "counting") timer = setTimeout(about, 1000);
  }

  function headline({ severity, text, filter }) {
    const [word, tone] = SEVERITY[severity] ?? SEVERITY.note;
    const item = element("li", { className: tone }, element("span", { className: "severity", text: word }), element("p", { className: "what", text }));
    if (filter) {
      const button = element("button", { type: "button", text: "Show them" });
      button.addEventListener("click", () => apply(filter));
      item.append(element("p", { className: "next" }, button));
    }
    return item;
  }

  let inputs = {};
  function makeTools(data) {
    const choice = (name, text, options) => {
      const select = element("select", { name }, ...options.map(([value, label]) => element("option", { value, text: label })));
      select.addEventListener("change", () => apply({ ...filters, [name]: select.value }));
      inputs[name] = select;
      tools.append(element("label", { text }, select));
    };
    choice("problem", "show", Object.entries(PROBLEMS).map(([value, label]) =>
      [value, value ? `${label} (${(data.counts[value] ?? 0).toLocaleString("en-US")})` : label]));
    choice("enlarged", "enlarged or not", [["", "both"], ["yes", "enlarged"], ["no", "not enlarged"]]);
    choice("bucket", "bucket", [["", "every bucket"], ...data.buckets.filter((each) => each.images)
      .map((each) => [String(each.index), `${each.width} × ${each.height} (${each.images.toLocaleString("en-US")})`])]);
    const tag = element("input", { type: "search", name: "tag", list: "known-tags", autocomplete: "off" });
    tag.addEventListener("change", () => apply({ ...filters, tag: tag.value.trim(), tag_class: "" }));
    inputs.tag = tag;
    tools.append(element("label", { className: "grow", text: "tag" }, tag), element("datalist", { id: "known-tags" }));
    const reset = element("button", { type: "button", text: "Show all" });
    reset.addEventListener("click", () => apply({}));
    tools.append(reset);
    fillTags(data.tags);
  }
  function fillTags(tags) {
    document.getElementById("known-tags")?.replaceChildren(...(tags ?? []).map((each) =>
      element("option", { value: each.name, text: `${each.class}, ${each.images} images` })));
  }
  function makeProblems(problems) {
    if (!problems.length) return;
    left.append(element("h2", { text: "Files left out" }), ...problems.map((kind) => element("details", {},
      element("summary", { text: `${kind.kind}: ${kind.files} files` }),
      element("ul", { className: "small" }, ...kind.shown.map((bad) => element("li", {}, isolated(bad.path), ": ", isolated(bad.reason)))))));
  }

  const fetchRows = (from, rows) => {
    const query = new URLSearchParams({ from: String(from), count: String(rows) });
    for (const [name, value] of Object.entries(filters)) if (value !== "" && value !== undefined && value !== null) query.set(name, String(value));
    return ask(`/api/data/rows?${query}`);
  };
  async function apply(next) {
    filters = next;
    for (const [name, input] of Object.entries(inputs)) input.value = String(filters[name] ?? "");
    const total = await wall.reset();
    if (total !== undefined) { tell("data", []); count.textContent = total === 1 ? "1 image" : `${total.toLocaleString("en-US")} images`; }
  }

  async function show(row) {
    if (opened !== row) visit = 0;
    opened = row;
    let one;
    try { one = await ask(`/api/data/rows/${row}?visit=${visit}`); } catch (error) { failing(error); return; }
    if (closed || opened !== row) return;
    const frame = element("div", { className: "frame" }), picture = element("img", { src: one.image, alt: one.caption.slice(0, 200) || one.id });
    const { left: x, top: y, width, height } = one.crop;
    for (const [name, share] of Object.entries({ left: x, top: y, width, height })) frame.style[name] = `${100 * share}%`;
    const box = element("div", { className: "crop" }, picture, frame);
    picture.addEventListener("error", async () => {
      const why = await ask(one.image).then(() => "", (error) => error.message);
      box.replaceWith(element("p", { className: "bad", text: why || "the image can't be shown" }));
    }, { once: true });
    const next = element("button", { type: "button", text: "Next visit's crop" });
    next.addEventListener("click", async () => { visit += 1; await show(row); look.querySelector("button")?.focus(); });
    const pair = (name, value) => [element("dt", { text: name }), element("dd", {}, typeof value === "string" ? isolated(value) : value)];
    look.replaceChildren(box, element("div", { className: "actions" }, next), element("dl", { className: "pairs" },
      ...pair("image", one.id), ...pair("size", `${one.width} × ${one.height} px`),
      ...pair("bucket", `${one.bucket.width} × ${one.bucket.height} px, aspect error ${number(one.aspect_error)}`),
      ...pair("scaled by", `${number(one.scale)}${one.enlarged ? ", enlarged" : ""}`),
      ...pair("aspect", one.too_far ? "too far from every bucket" : one.near_extreme ? "near the most extreme" : "within the buckets"),
      ...pair("crop", `visit ${one.visit}${one.flipped ? ", flipped" : ""}`),
      ...pair("loss weight", one.loss_weight === null ? "–" : number(one.loss_weight)),
      ...pair("caption", one.caption || "(none)"), ...pair("file", one.path),
      ...Object.entries(one.tags).flatMap(([kind, tags]) => pair(`${kind} tags`, tagList(kind, tags)))));
  }
  function tagList(kind, tags) {
    return element("ul", { className: "tags" }, ...tags.map((tag) => {
      const button = element("button", { type: "button", text: tag, title: "show images with this tag" });
      button.addEventListener("click", () => apply({ tag, tag_class: kind }));
      return element("li", {}, button);
    }));
  }

  about();
  return () => { closed = true; clearTimeout(timer); wall?.close(); view.replaceChildren(); };
}

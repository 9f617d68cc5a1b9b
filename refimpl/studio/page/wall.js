/* A wall of thumbnails over millions of rows, of which only those in sight exist.

   The rail that gives the scroll bar its length is at most TALLEST high, since browsers cut elements beyond some 30 million
   px. Where the rows would be higher, the bar moves by whole stretches; wheel and keys still move by what they say. */
const { element } = refimplCharts;
const TALLEST = 8e6, CELL = 132, CAPTION = 22, PAGE = 200, PAGES = 24, WAIT = 60;

/* fetchRows(from, count) → {total, rows}; opened(row, place) when a picture is chosen.
   returns {reset(), close()} */
export function openWall(holder, fetchRows, opened, failed) {
  const rail = element("div", { className: "rail" }), sheet = element("div", { className: "sheet" });
  const wall = element("div", { className: "wall", tabindex: "0", role: "listbox", "aria-label": "images" }, rail, sheet);
  holder.append(wall);
  let total = 0, columns = 1, cell = CELL, offset = 0, selected = -1, settle = 0, version = 0, announce = 0;
  let pages = new Map(), cells = new Map(), wanted = new Set();

  const height = () => cell + CAPTION, rows = () => Math.ceil(total / columns);
  const whole = () => rows() * height(), reach = () => Math.max(0, whole() - wall.clientHeight);
  const railReach = () => Math.max(0, Math.min(whole(), TALLEST) - wall.clientHeight);
  const ratio = () => railReach() > 0 ? reach() / railReach() : 1;

  function measure() {
    columns = Math.max(2, Math.floor(wall.clientWidth / CELL));
    cell = wall.clientWidth / columns;
    rail.style.height = `${Math.min(whole(), TALLEST)}px`;
  }
  function moveTo(next) {
    offset = Math.max(0, Math.min(reach(), next));
    const top = offset / ratio();
    if (Math.abs(wall.scrollTop - top) >= 1) wall.scrollTop = top;
    draw();
  }
  function draw() {
    const first = Math.max(0, Math.floor(offset / height()) - 1);
    const last = Math.min(rows(), Math.ceil((offset + wall.clientHeight) / height()) + 1);
    const seen = new Set();
    for (let place = first * columns; place < Math.min(total, last * columns); place++) seen.add(place);
    for (const [place, each] of cells) if (!seen.has(place)) { each.remove(); cells.delete(place); }
    const top = wall.scrollTop;
    for (const place of seen) {
      let each = cells.get(place);
      if (!each) {
        each = element("div", { className: "cell", role: "option", id: `cell-${place}`, "aria-setsize": String(total),
          "aria-posinset": String(place + 1), "aria-label": `image ${place + 1}` },
          element("div", { className: "thumb" }), element("div", { className: "under", text: " " }));
        each.addEventListener("click", () => select(place));
        cells.set(place, each);
        sheet.append(each);
      }
      each.style.width = `${cell}px`;
      each.style.height = `${height()}px`;
      each.style.left = `${(place % columns) * cell}px`;
      each.style.top = `${top + Math.floor(place / columns) * height() - offset}px`;
      each.setAttribute("aria-selected", String(place === selected));
      fill(place, each);
    }
    clearTimeout(settle);
    settle = setTimeout(load, WAIT);
  }
  function rowAt(place) {
    return pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }
  function fill(place, each) {
    const row = rowAt(place);
    if (!row || each.dataset.row === String(row.row)) return;
    each.dataset.row = String(row.row);
    each.setAttribute("aria-label", `${row.id}, ${row.width} by ${row.height}${row.enlarged ? ", enlarged" : ""}`);
    const picture = element("img", { className: "thumb", alt: "", src: `${row.thumbnail}?size=128` });
    picture.addEventListener("error", () => picture.replaceWith(element("div", { className: "thumb gone", text: "not readable" })), { once: true });
    each.replaceChildren(picture, element("div", { className: "under", text: `${row.width} × ${row.height}${row.enlarged ? " ↑" : ""}` }));
  }
  async function load() {
    const needed = new Set([...cells.keys()].map((place) => Math.floor(place / PAGE)));
    for (const page of needed) {
      if (pages.has(page) || wanted.has(page)) continue;
      const asked = version;
      wanted.add(page);
      try {
        const answer = await fetchRows(page * PAGE, PAGE);
        if (asked !== version) return;
        pages.set(page, answer.rows);
        while (pages.size > PAGES) pages.delete(pages.keys().next().value);
        if (answer.total !== total) { total = answer.total; measure(); }
        draw();
      } catch (error) { failed(error); } finally { if (asked === version) wanted.delete(page); }
    }
  }
  function select(place) {
    if (!total) return;
    selected = Math.max(0, Math.min(total - 1, place));
    const top = Math.floor(selected / columns) * height();
    if (top < offset) moveTo(top);
    else if (top + height() > offset + wall.clientHeight) moveTo(top + height() - wall.clientHeight);
    else draw();
    wall.setAttribute("aria-activedescendant", `cell-${selected}`);
    clearTimeout(announce);
    announce = setTimeout(tellSelected, WAIT, version, 40);
  }
  function tellSelected(asked, tries) {
    const row = rowAt(selected);
    if (asked !== version) return;
    if (row) opened(row, selected);
    else if (tries) announce = setTimeout(tellSelected, WAIT, asked, tries - 1);
  }
  wall.addEventListener("keydown", (event) => {
    const page = columns * Math.max(1, Math.floor(wall.clientHeight / height()));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) select(selected < 0 ? 0 : selected + steps[event.key]);
    else if (event.key === "Home") select(0);
    else if (event.key === "End") select(total - 1);
    else if (event.key === "Enter" || event.key === " ") select(Math.max(0, selected));
    else return;
    event.preventDefault();
  });
  wall.addEventListener("wheel", (event) => {
    if (ratio() <= 1.001 || event.ctrlKey) return; // the browser scrolls by itself
    event.preventDefault();
    moveTo(offset + event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? wall.clientHeight : 1));
  }, { passive: false });
  wall.addEventListener("scroll", () => {
    if (Math.abs(wall.scrollTop - offset / ratio()) >= 1) offset = Math.min(reach(), wall.scrollTop * ratio());
    draw();
  });
  const resized = new ResizeObserver(() => {
    const first = Math.floor(offset / height()) * columns;
    measure();
    moveTo(Math.floor(first / columns) * height());
  });
  resized.observe(wall);

  return {
    /* Shows other rows, from the first one. */
    async reset() {
      version += 1;
      const asked = version;
      pages = new Map(); wanted = new Set(); selected = -1;
      for (const each of cells.values()) each.remove();
      cells = new Map();
      try {
        const answer = await fetchRows(0, PAGE);
        if (asked !== version) return;
        total = answer.total;
        pages.set(0, answer.rows);
        wall.removeAttribute("aria-activedescendant");
        measure();
        moveTo(0);
        return total;
      } catch (error) { failed(error); }
    },
    close() { version += 1; resized.disconnect(); clearTimeout(settle); clearTimeout(announce); wall.remove(); },
  };
}

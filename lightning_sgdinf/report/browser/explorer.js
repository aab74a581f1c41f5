// The list of all examples with its controls, and what happens when they are used.

const at = (name) => document.getElementById(name);

/** Part of an address as a person reads it. */
function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign that begins nothing
  }
}

class Explorer {
  constructor(examples) {
    this.examples = examples;
    this.filter = { ...EVERYTHING };
    this.sort = { key: "rank", reversed: false };
    this.marked = new Set();
    this.active = 0;
    this.grid = at("x-list");
    this.fillControls();
    const tall = at("x-body");
    this.list = new VirtualList(this.grid, tall, () => this.makeRow(), (row, position) => this.fillRow(row, position));
    this.detail = new Detail(examples, {
      column: () => this.column,
      neighbour: (i, by) => this.shown[this.shown.indexOf(i) + by] ?? null,
      mark: (i) => this.mark(i),
      marked: (i) => this.marked.has(i),
      closed: (i) => this.closed(i),
      opened: (i) => this.show(i),
    });
    this.comparison = null;
    if (examples.columns.length > 1) {
      at("x-comparison").hidden = false;
      this.comparison = new Comparison(examples, {
        open: (i) => this.open(i),
        box: (box) => this.setBox(box),
        shown: () => this.shown,
      });
    }
    this.listen();
    this.update();
    this.comparison?.update();
    this.openLinked();
  }

  get column() {
    return this.examples.columns[Number(at("x-column").value)];
  }

  fillControls() {
    const { examples } = this;
    const option = (value, text) => element("option", { value }, text);
    const methods = [...new Set(examples.columns.map((column) => column.method))];
    at("x-method").append(...methods.map((name) => option(name, name)));
    at("x-method-field").hidden = methods.length < 2;
    this.fillQuestions();
    const targets = examples.labels?.numbers ?? null;
    at("x-label-field").hidden = !examples.labels || targets !== null;
    at("x-target-field").hidden = targets === null;
    at("x-known-field").hidden = !examples.corrupt;
    if (targets !== null) this.fillTargets(targets);
    else if (examples.labels) {
      const keys = examples.labels.names.map((name, code) => [name, code]);
      const collator = new Intl.Collator(undefined, { numeric: true });
      keys.sort(([a], [b]) => collator.compare(a, b));
      at("x-label").append(...keys.map(([name, code]) => option(String(code), name || "(nothing)")));
      at("x-sort").append(option("label", "label"));
    }
    (examples.table?.columns ?? []).forEach(({ name }, k) => at("x-sort").append(option(`cell:${k}`, name)));
    for (const name of ["x-from", "x-to"]) at(name).max = String(examples.count);
    at("x-to").placeholder = countText(examples.count);
    for (const [kind, there] of [["pictures", examples.sheets], ["words", examples.texts || examples.table],
      ["labels", examples.labels], ["epochs", examples.epochs]]) at("explorer").classList.toggle(`x-has-${kind}`, Boolean(there));
  }

  /** What the chosen method can be asked about. */
  fillQuestions() {
    const { columns } = this.examples;
    const own = columns.filter((column) => column.method === at("x-method").value);
    at("x-column").replaceChildren();
    fillColumns(at("x-column"), own, columns, (column) => column.query);
    at("x-column").value = String(columns.indexOf(own[0]));
    at("x-column-field").hidden = columns.length < 2 || own[0].better === "order";
  }

  /** Targets of a regression are chosen by a range, and sorted as numbers. */
  fillTargets(targets) {
    const known = targets.filter((value) => !Number.isNaN(value));
    at("x-least").placeholder = cellText(known.reduce((a, b) => Math.min(a, b), Infinity));
    at("x-most").placeholder = cellText(known.reduce((a, b) => Math.max(a, b), -Infinity));
    at("x-label-head").textContent = "target";
    at("x-sort").append(element("option", { value: "label" }, "target"));
  }

  listen() {
    at("x-method").addEventListener("input", () => this.fillQuestions()); // before the form hears of it
    at("x-controls").addEventListener("input", () => this.read());
    at("x-controls").addEventListener("submit", (event) => event.preventDefault());
    at("x-controls").addEventListener("reset", () => setTimeout(() => this.reset()));
    at("x-again").addEventListener("click", () => at("x-controls").reset());
    at("x-box").addEventListener("click", () => this.setBox(null));
    at("x-csv").addEventListener("click", () => this.download());
    at("x-unmark").addEventListener("click", () => this.unmark());
    for (const button of this.grid.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.sortBy(button.dataset.sort));
    }
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.grid.addEventListener("click", (event) => this.click(event));
    globalThis.addEventListener("hashchange", () => this.openLinked());
    for (const tile of document.querySelectorAll("[data-example]")) this.makeButton(tile);
  }

  /** Tiles of the printed part open the example, too. */
  makeButton(tile) {
    const i = Number(tile.dataset.example);
    tile.classList.add("x-opens");
    const name = tile.querySelector(".name");
    if (!name) return;
    const button = element("button", { type: "button", class: "x-link", "aria-label": `Training example ${i} in full` }, name.textContent);
    name.replaceChildren(button);
    tile.addEventListener("click", (event) => {
      if (!event.target.closest("a") && String(globalThis.getSelection()) === "") this.open(i);
    });
  }

  read() {
    const whole = (name) => (at(name).value === "" ? null : Number(at(name).value));
    Object.assign(this.filter, {
      text: at("x-search").value, label: at("x-label").value, known: at("x-known").value,
      least: whole("x-least"), most: whole("x-most"), from: whole("x-from"), to: whole("x-to"), marked: at("x-marked-only").checked ? this.marked : null,
    });
    this.sort = { key: at("x-sort").value, reversed: at("x-reversed").checked };
    this.update();
  }

  reset() {
    this.filter.box = null;
    this.fillQuestions();
    this.read();
  }

  setBox(box) {
    this.filter.box = box;
    this.update();
  }

  sortBy(key) {
    const again = this.sort.key === key;
    at("x-sort").value = key;
    at("x-reversed").checked = again && !this.sort.reversed;
    this.read();
  }

  /** Choose again what is shown, and show it from its beginning. */
  update() {
    this.shown = chosen(this.examples, this.column, this.filter, this.sort);
    this.setActive(0, false);
    this.list.show(this.shown.length);
    this.say();
    this.comparison?.draw();
  }

  say() {
    const { count } = this.examples;
    const { length } = this.shown;
    at("x-count").textContent = length === count ? `${countText(count)} examples` : `${countText(length)} of ${countText(count)} examples`;
    at("x-empty").hidden = length > 0;
    at("x-box").hidden = this.filter.box === null;
    this.grid.setAttribute("aria-rowcount", String(length + 1));
    const { key, reversed } = this.sort;
    for (const head of this.grid.querySelectorAll("[role=columnheader]")) {
      const own = head.querySelector(`[data-sort="${key}"]`);
      head.setAttribute("aria-sort", own ? (reversed ? "descending" : "ascending") : "none");
    }
    at("x-score-head").textContent = this.column.head;
    this.sayMarked();
  }

  sayMarked() {
    const count = this.marked.size;
    at("x-csv").textContent = count ? `Download the ${countText(count)} marked as CSV` : "Download these as CSV";
    at("x-unmark").hidden = count === 0;
  }

  mark(i) {
    if (!this.marked.delete(i)) this.marked.add(i);
    this.sayMarked();
    if (this.filter.marked && !this.detail.dialog.open) this.update();
    else this.list.refresh();
  }

  unmark() {
    this.marked.clear();
    at("x-marked-only").checked = false;
    this.read();
  }

  makeRow() {
    const cell = (kind, ...children) => element("span", { role: "gridcell", class: `x-${kind}` }, ...children);
    const row = element("div", { role: "row", class: "x-row" });
    const tick = element("input", { type: "checkbox", tabindex: "-1" });
    const picture = element("span", { class: "x-picture" });
    const words = element("span", { class: "x-words" });
    const label = element("span");
    const truth = element("span", { class: "x-wrong" });
    const score = element("span", { class: "x-number" });
    const bar = element("span");
    const harm = drawing("path", { class: "x-harm-fill" });
    const help = drawing("path", { class: "x-help-fill" });
    const spark = drawing("svg", { viewBox: "0 0 96 30", preserveAspectRatio: "none", "aria-hidden": "true" }, harm, help);
    const rank = cell("rank");
    const name = cell("name");
    row.append(cell("tick", tick), rank, name, cell("face", picture, words), cell("label", label, truth),
      cell("score", score, element("span", { class: "x-diverging", "aria-hidden": "true" }, bar)), cell("epochs", spark));
    row.parts = { tick, rank, name, picture, words, label, truth, score, bar, harm, help };
    return row;
  }

  fillRow(row, position) {
    const { examples, column } = this;
    const i = this.shown[position];
    const { parts } = row;
    row.id = `x-row-${position}`;
    row.dataset.number = String(i);
    row.setAttribute("aria-rowindex", String(position + 2));
    row.setAttribute("aria-selected", String(position === this.active));
    parts.tick.checked = this.marked.has(i);
    parts.tick.setAttribute("aria-label", `Mark example ${i}`);
    parts.rank.textContent = countText(column.ranks[i]);
    parts.name.textContent = `#${i}`;
    showPicture(parts.picture, examples, i, 52);
    parts.words.textContent = examples.summary(i);
    parts.label.textContent = examples.label(i);
    const truth = examples.truth(i);
    parts.truth.textContent = examples.wrong(i) ? (truth && truth !== examples.label(i) ? `should be ${truth}` : "corrupt") : "";
    const score = column.score(i);
    parts.score.textContent = column.scoreText(i);
    const share = column.largest ? (50 * Math.abs(score)) / column.largest : 0;
    parts.bar.className = column.harms(i) ? "x-harm-fill" : "x-help-fill";
    Object.assign(parts.bar.style, { width: `${share}%`, left: column.harms(i) ? `${50 - share}%` : "50%" });
    const values = examples.contributions(i);
    const bars = values ? barPaths(values, examples.columns[0].better, 96, 30) : { harm: "", help: "" };
    parts.harm.setAttribute("d", bars.harm);
    parts.help.setAttribute("d", bars.help);
  }

  setActive(position, reveal = true) {
    this.active = Math.max(0, Math.min(position, this.shown.length - 1));
    if (reveal) {
      this.list.reveal(this.active);
      this.list.refresh();
    }
    if (this.shown.length) this.grid.setAttribute("aria-activedescendant", `x-row-${this.active}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  key(event) {
    if (event.target !== this.grid || !this.shown.length) return;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: this.list.page, PageUp: -this.list.page };
    if (event.key in moves) this.setActive(this.active + moves[event.key]);
    else if (event.key === "Home") this.setActive(0);
    else if (event.key === "End") this.setActive(this.shown.length - 1);
    else if (event.key === "Enter") this.open(this.shown[this.active]);
    else if (event.key === " ") this.mark(this.shown[this.active]);
    else return;
    event.preventDefault();
  }

  click(event) {
    const row = event.target.closest(".x-row");
    if (!row) return;
    const i = Number(row.dataset.number);
    this.setActive(row.position);
    if (event.target.closest(".x-tick")) {
      if (event.target.matches("input")) this.mark(i);
      return;
    }
    this.open(i);
  }

  open(i) {
    at("x-address").hidden = true;
    this.detail.open(i);
  }

  /** The address in the browser is that of the example that is open. */
  show(i) {
    const { pathname, search } = globalThis.location;
    history.replaceState(null, "", i === null ? pathname + search : `#example-${i}`);
  }

  /** After the dialog: the list stands at the example that was seen last. */
  closed(i) {
    this.show(null);
    if (this.filter.marked) this.update();
    const position = this.shown.indexOf(i);
    if (position >= 0) this.setActive(position);
  }

  /** An address that ends in `#example-12` opens example 12; one that leads nowhere says so. */
  openLinked() {
    const name = unescaped(globalThis.location.hash.slice(1));
    const [, number] = /^example-(\d+)$/.exec(name) ?? [];
    const { count } = this.examples;
    at("x-address").hidden = true;
    if (number !== undefined && Number(number) < count) this.open(Number(number));
    else if (name !== "" && !document.getElementById(name)) {
      at("x-address").textContent = number === undefined
        ? `The address of this page ends in #${name}, which is no part of it; an example is #example-0 to #example-${count - 1}.`
        : `There is no training example ${number}: they are numbered from 0 to ${count - 1}.`;
      at("x-address").hidden = false;
      at("x-address").scrollIntoView({ block: "center" });
    }
  }

  csv() {
    const ids = this.marked.size ? chosen(this.examples, this.column, { ...EVERYTHING, marked: this.marked }, this.sort) : this.shown;
    return csvText(csvRows(this.examples, this.column, ids));
  }

  download() {
    const address = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv;charset=utf-8" }));
    element("a", { href: address, download: "training-examples.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }
}

/** Read the page's data and make its list; where that cannot be, say why, and leave the rest of the page as it is. */
async function start() {
  const state = at("x-state");
  if (typeof DecompressionStream === "undefined") {
    state.textContent = "This browser is too old for the list of all examples; everything below works.";
    return null;
  }
  try {
    const examples = await Examples.read(EmbeddedData.of(document));
    at("explorer").hidden = false; // before the list measures its room
    const explorer = new Explorer(examples);
    state.hidden = true;
    return explorer;
  } catch (error) {
    at("explorer").hidden = true;
    state.textContent = `The list of all examples could not be read (${error.message}); everything below works.`;
    throw error;
  }
}

globalThis.sgdinf = {
  VirtualList, numberText, signedText, cellText, numbersOf, ranksOf, correlation, overlap, csvText, chosen, csvRows, barPaths, unshuffled, base64Bytes,
  ready: start(),
};

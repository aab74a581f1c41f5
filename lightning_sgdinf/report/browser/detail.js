// One example in full: what it is, what it did, to which held-out examples, and when.

const HELD_OUT_SHOWN = 12; // most affected held-out examples to name

class Detail {
  constructor(examples, steps) {
    this.examples = examples;
    this.steps = steps; // {column(), neighbour(i, by), mark(i), marked(i), opened(i), closed(i)}
    this.dialog = document.getElementById("x-detail");
    this.body = document.getElementById("x-detail-body");
    this.shown = null;
    const press = (name, action) => document.getElementById(name).addEventListener("click", action);
    press("x-close", () => this.dialog.close());
    press("x-previous", () => this.walk(-1));
    press("x-next", () => this.walk(1));
    document.getElementById("x-mark").addEventListener("change", () => this.steps.mark(this.shown));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target.matches("input, summary")) return;
      if (event.key === "ArrowLeft") this.walk(-1);
      if (event.key === "ArrowRight") this.walk(1);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
    this.dialog.addEventListener("close", () => {
      this.steps.closed(this.shown);
      this.shown = null;
    });
  }

  walk(by) {
    const next = this.steps.neighbour(this.shown, by);
    if (next !== null) this.open(next);
  }

  open(i) {
    this.shown = i;
    this.steps.opened(i);
    document.getElementById("x-detail-title").textContent = `Example ${i}`;
    document.getElementById("x-mark").checked = this.steps.marked(i);
    document.getElementById("x-previous").disabled = this.steps.neighbour(i, -1) === null;
    document.getElementById("x-next").disabled = this.steps.neighbour(i, 1) === null;
    this.body.replaceChildren(...this.parts(i).filter(Boolean));
    if (!this.dialog.open) this.dialog.showModal(); // focuses the body, so that keys scroll it
    this.body.scrollTop = 0;
  }

  parts(i) {
    const column = this.steps.column();
    const verdict = element("p", { class: `x-verdict ${column.harms(i) ? "x-harm" : "x-help"}` }, column.verdict(i));
    return [
      element("div", { class: "x-what" }, this.face(i), element("div", {}, this.names(i), verdict, this.ranks(i))),
      this.content(i),
      this.heldOut(i),
      this.epochs(i),
    ];
  }

  face(i) {
    const printed = document.querySelector(`[data-example="${i}"] img.face`); // larger, where the page has it anyway
    const name = `Training example ${i}, labelled ${this.examples.label(i)}`;
    if (printed) {
      const picture = element("img", { src: printed.src, alt: name, class: printed.className });
      return element("div", { class: "x-portrait" }, picture);
    }
    const picture = element("div", { role: "img", "aria-label": name });
    showPicture(picture, this.examples, i, 176);
    return picture.hidden ? "" : element("div", { class: "x-portrait" }, picture);
  }

  names(i) {
    const { examples } = this;
    const parts = [];
    if (examples.labels) parts.push(examples.labels.numbers ? "target " : "labelled ", element("strong", {}, examples.label(i) || "(nothing)"));
    if (examples.wrong(i)) {
      const truth = examples.truth(i);
      const named = truth && truth !== examples.label(i);
      parts.push(", ", element("span", { class: "x-wrong" }, named ? `should be ${truth}` : "known to be corrupt"));
    }
    const prediction = examples.prediction(i);
    if (prediction) parts.push(parts.length ? ", " : "", "predicted ", element("strong", {}, prediction));
    return element("p", { class: "x-names" }, ...parts);
  }

  ranks(i) {
    const { columns, verified, count } = this.examples;
    const shown = columns.filter((column) => column.group !== "single");
    const heads = ["effect on", "by", "rank", "score"];
    const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)));
    const rows = shown.map((column) => element("tr", {},
      element("th", { scope: "row" }, column.better === "order" ? "(a ranking only)" : column.query),
      element("th", { scope: "row" }, column.method),
      element("td", {}, `${countText(column.ranks[i])} of ${countText(count)}`),
      element("td", {}, column.scoreText(i))));
    const table = scrolled("Ranks of this example",
      element("table", { class: "x-ranks" }, element("thead", {}, head), element("tbody", {}, ...rows)));
    if (verified && verified[i]) table.append(element("p", { class: "sign" }, "Its score was measured by training again."));
    return table;
  }

  content(i) {
    const { examples } = this;
    const parts = [];
    const row = examples.row(i);
    if (row.length) parts.push(pairList(row));
    const text = examples.text(i);
    if (text) parts.push(element("blockquote", { class: "x-text", tabindex: "0", "aria-label": "Text" }, text));
    const html = examples.html(i);
    if (html) {
      const made = element("div", { class: "x-html" });
      made.innerHTML = html; // only what its maker called safe gets here; the page's policy runs no script of it
      parts.push(made);
    }
    return parts.length ? element("section", {}, element("h4", {}, "The example"), ...parts) : "";
  }

  heldOut(i) {
    const single = this.examples.columns.filter((column) => column.group === "single" && column.score(i) !== 0);
    if (!single.length) return "";
    const size = (column) => Math.abs(column.score(i));
    single.sort((a, b) => size(b) - size(a));
    const largest = size(single[0]);
    const group = (heading, members) => element("div", {}, element("h5", {}, heading), members.length
      ? element("ul", { class: "x-effects" }, ...members.map((column) => this.effect(column, i, largest)))
      : element("p", { class: "sign" }, "None of those looked at."));
    const hurt = single.filter((column) => column.harms(i)).slice(0, HELD_OUT_SHOWN);
    const helped = single.filter((column) => !column.harms(i)).slice(0, HELD_OUT_SHOWN);
    return element("section", {}, element("h4", {}, "Held-out examples"),
      element("p", { class: "sign" }, "How each is predicted to change if this training example is left out."),
      element("div", { class: "x-sides" }, group("It hurts", hurt), group("It helps", helped)));
  }

  effect(column, i, largest) {
    const about = column.about ?? {};
    const face = about.image ? element("img", { src: about.image, alt: "", class: "x-small crisp" }) : "";
    const bar = element("span", { class: `x-length ${column.harms(i) ? "x-harm-fill" : "x-help-fill"}` });
    bar.style.width = `${(100 * Math.abs(column.score(i))) / largest}%`;
    const label = [about.label ? `labelled ${about.label}` : "", about.prediction ? `predicted ${about.prediction}` : ""]
      .filter(Boolean).join(", ");
    return element("li", {}, face, element("div", { class: "x-effect" },
      element("span", {}, column.query), element("span", { class: "x-soft" }, [label, about.words].filter(Boolean).join(": ")),
      element("span", { class: "x-track" }, bar)), element("span", { class: "x-number" }, signedText(column.score(i))));
  }

  epochs(i) {
    const { examples } = this;
    const values = examples.contributions(i);
    if (!values) return "";
    const column = examples.columns[0];
    const head = element("tr", {}, element("th", { scope: "col" }, "epoch"), element("th", { scope: "col" }, "contribution"));
    const rows = values.map((value, k) => element("tr", {}, element("td", {}, String(k)), element("td", {}, signedText(value))));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
    return element("section", {}, element("h4", {}, "When in training it happened"),
      element("p", { class: "sign" }, `Each epoch's share of the change of ${column.query}: down, it harmed; up, it helped.`),
      epochChart(values, column),
      element("details", {}, element("summary", {}, "As numbers"), scrolled("Contributions of the epochs", table)));
  }
}

// Two rankings against each other: a point per example, the most harmful at the lower left.

const POINT = 2; // pixels
const NEAR = 14; // pixels around a point that count as pointing at it

class Comparison {
  constructor(examples, steps) {
    this.examples = examples;
    this.steps = steps; // {open(i), box(box), shown()}
    this.canvas = document.getElementById("x-scatter");
    this.tip = document.getElementById("x-tip");
    this.selects = ["x-first", "x-second"].map((name) => document.getElementById(name));
    this.drag = null;
    this.pointed = null; // the example that the keyboard points at
    this.due = null; // what to do when it comes into view: "all" or "points"
    this.visible = false;
    this.selects.forEach((select, k) => {
      fillColumns(select, examples.columns);
      select.value = String(k);
      select.addEventListener("change", () => {
        this.drag = null;
        this.steps.box(null);
        this.compute();
      });
    });
    this.listen();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    const watch = (entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible && this.due) (this.due === "all" ? this.compute() : this.paint());
    };
    new IntersectionObserver(watch, { rootMargin: "300px" }).observe(this.canvas);
  }

  /** The rankings have changed. */
  update() {
    this.due = "all";
    if (this.visible) this.compute();
  }

  /** Repaint after a change of the examples that are shown. */
  draw() {
    this.due ??= "points";
    if (this.visible && this.due === "points") this.paint();
  }

  get columns() {
    return this.selects.map((select) => this.examples.columns[Number(select.value)]);
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") return; // a finger scrolls; its tap is a click
      canvas.setPointerCapture(event.pointerId);
      this.drag = { from: [event.offsetX, event.offsetY], to: [event.offsetX, event.offsetY] };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.drag) {
        this.drag.to = [event.offsetX, event.offsetY];
        this.draw();
      } else this.point(event.offsetX, event.offsetY);
    });
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("pointercancel", () => { this.drag = null; });
    canvas.addEventListener("pointerup", () => this.release());
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.draw());
    canvas.addEventListener("click", (event) => {
      const nearest = this.nearest(event.offsetX, event.offsetY);
      if (!this.dragged && nearest !== null) this.steps.open(nearest);
    });
  }

  /** Arrows go from point to point; with Shift they draw a box from there. */
  key(event) {
    const [x, y] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (x || y) {
      if (event.shiftKey) this.stretch(x, y);
      else this.walk(x, y);
    } else if (event.key === "Enter" && this.pointed !== null) this.steps.open(this.pointed);
    else if (event.key === "Escape") {
      this.drag = null;
      this.steps.box(null);
    } else return;
    event.preventDefault();
    this.draw();
  }

  /** Point at the nearest point that way; at first at the one that both find most harmful. */
  walk(x, y) {
    const frame = this.frame();
    const ranks = this.columns.map((column) => column.ranks);
    const [fromX, fromY] = this.pointed === null ? [-1, frame.height + 1] : this.place(ranks, this.pointed, frame);
    let [best, least] = [null, Infinity];
    for (const i of this.steps.shown()) {
      const [px, py] = this.place(ranks, i, frame);
      const [along, aside] = [(px - fromX) * x + (py - fromY) * y, Math.abs((px - fromX) * y) + Math.abs((py - fromY) * x)];
      const distance = this.pointed === null ? Math.hypot(px - fromX, py - fromY) : along + 2 * aside;
      if ((this.pointed === null || along > 0.01) && i !== this.pointed && distance < least) [best, least] = [i, distance];
    }
    this.drag = null;
    this.pointed = best ?? this.pointed;
    document.getElementById("x-pointed").textContent = this.pointed === null ? "" : this.said(this.pointed);
  }

  stretch(x, y) {
    const frame = this.frame();
    const ranks = this.columns.map((column) => column.ranks);
    const from = this.pointed === null ? [frame.left, frame.top + frame.side] : this.place(ranks, this.pointed, frame);
    this.drag ??= { from, to: [...from] };
    const step = frame.side / 20;
    const within = (value, start) => Math.min(start + frame.side, Math.max(start, value));
    this.drag.to = [within(this.drag.to[0] + x * step, frame.left), within(this.drag.to[1] + y * step, frame.top)];
    this.steps.box(this.boxOf(this.drag));
  }

  /** An example with its ranks, in words. */
  said(i) {
    const [a, b] = this.columns;
    const label = this.examples.label(i);
    return `#${i}${label ? `, ${label}` : ""}: rank ${countText(a.ranks[i])} and ${countText(b.ranks[i])}`;
  }

  release() {
    const { drag } = this;
    this.drag = null;
    this.dragged = drag !== null && Math.hypot(drag.to[0] - drag.from[0], drag.to[1] - drag.from[1]) > 6;
    if (this.dragged) this.steps.box(this.boxOf(drag));
    this.draw();
  }

  /** The ranks inside a rectangle. */
  boxOf({ from, to }) {
    const [a, b] = this.columns;
    const { left, top, side } = this.frame();
    const { count } = this.examples;
    const rank = (pixels) => 1 + Math.round((pixels / side) * (count - 1));
    const along = [from[0] - left, to[0] - left].sort((x, y) => x - y).map(rank);
    const up = [top + side - from[1], top + side - to[1]].sort((x, y) => x - y).map(rank);
    return { a, b, fromA: along[0], toA: along[1], fromB: up[0], toB: up[1] };
  }

  frame() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const [left, bottom, top] = [14, 14, 6];
    return { left, top, side: Math.max(40, Math.min(width - left - 6, height - bottom - top)), width, height };
  }

  /** Place of an example, in pixels of the canvas. */
  place(ranks, i, frame) {
    const last = Math.max(1, this.examples.count - 1);
    return [
      frame.left + ((ranks[0][i] - 1) / last) * frame.side,
      frame.top + frame.side - ((ranks[1][i] - 1) / last) * frame.side,
    ];
  }

  nearest(x, y) {
    const frame = this.frame();
    const ranks = this.columns.map((column) => column.ranks);
    let [best, least] = [null, NEAR * NEAR];
    for (const i of this.steps.shown()) {
      const [px, py] = this.place(ranks, i, frame);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  point(x, y) {
    const i = this.nearest(x, y);
    this.tip.hidden = i === null;
    this.canvas.style.cursor = i === null ? "crosshair" : "pointer";
    if (i === null) return;
    this.tip.textContent = this.said(i);
    const right = x > this.canvas.clientWidth / 2;
    Object.assign(this.tip.style, {
      top: `${y + 12}px`, left: right ? "auto" : `${x + 12}px`, right: right ? `${this.canvas.clientWidth - x + 12}px` : "auto",
    });
  }

  compute() {
    const [a, b] = this.columns;
    const { count } = this.examples;
    const k = Math.max(1, Math.min(100, Math.round(count / 10)));
    const agreement = numberText(correlation(a.ranks, b.ranks));
    const common = overlap(a.ranks, b.ranks, k);
    const words = `Rank correlation ${agreement}. Of the ${k} most harmful by each, ${common} are the same; `
      + `chance would make it ${numberText((k * k) / count, 2)}.`;
    document.getElementById("x-agreement").textContent = words;
    this.canvas.setAttribute("aria-label", `Ranks: ${b.name}, against ${a.name}; a point per example. ${words}`);
    document.getElementById("x-axis-x").textContent = `rank: ${a.name} →`;
    document.getElementById("x-axis-y").textContent = `rank: ${b.name} →`;
    this.disagreements(a, b);
    this.paint();
  }

  /** Buttons for the examples whose ranks differ most. */
  disagreements(a, b) {
    const gap = (i) => a.ranks[i] - b.ranks[i];
    const ids = Array.from({ length: this.examples.count }, (_, i) => i).sort((i, j) => gap(i) - gap(j) || i - j);
    const button = (i) => {
      const label = this.examples.label(i);
      const words = `#${i}${label ? ` (${label})` : ""}: rank ${countText(a.ranks[i])} → ${countText(b.ranks[i])}`;
      const made = element("button", { type: "button", class: "x-chip" }, words);
      made.addEventListener("click", () => this.steps.open(i));
      return element("li", {}, made);
    };
    const show = (name, ids) => document.getElementById(name).replaceChildren(...ids.map(button));
    show("x-first-only", ids.filter((i) => gap(i) < 0).slice(0, 6));
    show("x-second-only", ids.reverse().filter((i) => gap(i) > 0).slice(0, 6));
    document.getElementById("x-first-only-head").textContent = `More harmful: ${a.name}`;
    document.getElementById("x-second-only-head").textContent = `More harmful: ${b.name}`;
  }

  paint() {
    this.due = null;
    const { canvas, examples } = this;
    const frame = this.frame();
    const ratio = globalThis.devicePixelRatio || 1;
    if (!frame.width) return;
    canvas.width = Math.round(frame.width * ratio);
    canvas.height = Math.round(frame.height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.strokeStyle = colour("--rule");
    pen.strokeRect(frame.left + 0.5, frame.top + 0.5, frame.side, frame.side);
    const ranks = this.columns.map((column) => column.ranks);
    const shown = this.steps.shown();
    const dots = (ids, fill, alpha, size) => {
      pen.fillStyle = fill;
      pen.globalAlpha = alpha;
      for (const i of ids) {
        const [x, y] = this.place(ranks, i, frame);
        pen.fillRect(x - size / 2, y - size / 2, size, size);
      }
      pen.globalAlpha = 1;
    };
    const size = examples.count > 5000 ? POINT : POINT * 2;
    if (shown.length < examples.count) dots(examples.everyone(), colour("--soft"), 0.12, size);
    dots(shown.filter((i) => !examples.wrong(i)), colour("--help"), examples.count > 5000 ? 0.3 : 0.55, size);
    dots(shown.filter((i) => examples.wrong(i)), colour("--harm"), 0.9, size + 1);
    if (this.pointed !== null && document.activeElement === canvas) {
      const [x, y] = this.place(ranks, this.pointed, frame);
      pen.strokeStyle = colour("--ink");
      pen.lineWidth = 2;
      pen.strokeRect(x - 7, y - 7, 14, 14);
      pen.lineWidth = 1;
    }
    if (this.drag) {
      const [[x, y], [toX, toY]] = [this.drag.from, this.drag.to];
      pen.strokeStyle = colour("--ink");
      pen.setLineDash([4, 3]);
      pen.strokeRect(x, y, toX - x, toY - y);
    }
  }
}

/** Rankings as options, those of a kind together. */
function fillColumns(select, columns, all = columns, text = (column) => column.name) {
  const headings = { query: "This report", method: "Other methods", single: "Single held-out examples" };
  for (const [group, heading] of Object.entries(headings)) {
    const members = columns.filter((column) => column.group === group);
    if (!members.length) continue;
    const options = members.map((column) => element("option", { value: String(all.indexOf(column)) }, text(column)));
    select.append(element("optgroup", { label: heading }, ...options));
  }
}

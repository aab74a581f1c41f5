// Pieces of the page. Text enters as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child that is a string is text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Make an element show an example's picture, at most `size` pixels on a side; hide it if there is none. */
function showPicture(target, examples, i, size) {
  const picture = examples.picture(i);
  target.hidden = picture === null;
  if (!picture) return;
  const { width, height, across } = examples.sheets;
  const zoom = size / Math.max(width, height);
  const pixels = (value) => `${Math.round(value * 1000) / 1000}px`;
  const { style } = target;
  style.backgroundImage = `url("${picture.address}")`;
  style.backgroundPosition = `${pixels(-picture.column * width * zoom)} ${pixels(-picture.line * height * zoom)}`;
  if (target.lines === picture.lines) return; // all sheets but the last are alike
  target.lines = picture.lines;
  style.width = pixels(width * zoom);
  style.height = pixels(height * zoom);
  style.backgroundSize = `${pixels(across * width * zoom)} ${pixels(picture.lines * height * zoom)}`;
  style.imageRendering = zoom >= 1.5 ? "pixelated" : "auto";
}

/** Bars of contributions as two paths in a box of the given size: harmful ones down, helpful ones up. */
function barPaths(contributions, better, width, height) {
  const values = contributions.map((value) => (better === "higher" ? -value : value));
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const step = width / values.length;
  const gap = step > 3 ? 1 : 0;
  const y = (value) => (high === low ? height / 2 : ((high - value) / (high - low)) * height);
  const paths = { harm: "", help: "" };
  values.forEach((value, k) => {
    const bar = `M${(k * step).toFixed(2)} ${y(0).toFixed(2)}h${(step - gap).toFixed(2)}V${y(value).toFixed(2)}h${(gap - step).toFixed(2)}z`;
    paths[value < 0 ? "harm" : "help"] += bar;
  });
  return { ...paths, zero: y(0) };
}

/** The chart of what each epoch contributed. */
function epochChart(values, column) {
  const ends = [Math.min(0, ...values), Math.max(0, ...values)];
  const [low, high] = column.better === "higher" ? ends.reverse() : ends; // of the axis, from below
  const widest = Math.max(signedText(low).length, signedText(high).length);
  const [width, height, left] = [520, 150, 14 + 7.5 * widest]; // room for the numbers beside the axis
  const bars = barPaths(values, column.better, width, height);
  const most = values.reduce((best, value, k) => (Math.abs(value) > Math.abs(values[best]) ? k : best), 0);
  const label = `Contribution of each of ${values.length} epochs to the change of ${column.query}; the largest, `
    + `${signedText(values[most])}, in epoch ${most}`;
  const word = (x, y, anchor, text) => drawing("text", { x, y, "text-anchor": anchor, class: "x-axis" }, text);
  const edge = (value) => word(left - 8, value === high ? 10 : height, "end", signedText(value));
  const chart = drawing("svg", { viewBox: `0 0 ${width + left} ${height + 36}`, role: "img", "aria-label": label });
  const plot = drawing("g", { transform: `translate(${left} 0)` },
    drawing("path", { d: bars.harm, class: "x-harm-fill" }),
    drawing("path", { d: bars.help, class: "x-help-fill" }),
    drawing("path", { d: `M0 ${bars.zero}H${width}`, class: "x-zero" }));
  chart.append(plot, edge(high));
  if (low !== high) chart.append(edge(low));
  const step = width / values.length;
  chart.append(word(left + step / 2, height + 16, "middle", "0"));
  if (values.length > 1) chart.append(word(left + width - step / 2, height + 16, "middle", String(values.length - 1)));
  chart.append(word(left + width / 2, height + 32, "middle", "training epoch"));
  return chart;
}

/** A table that scrolls by itself where it is wider than its place, with the keyboard, too. */
function scrolled(name, table) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, table);
}

/** Names and values in two columns. */
function pairList(pairs) {
  return element("dl", { class: "x-pairs" }, ...pairs.map(([name, value]) => (
    element("div", {}, element("dt", {}, name), element("dd", {}, cellText(value) || "missing")))));
}

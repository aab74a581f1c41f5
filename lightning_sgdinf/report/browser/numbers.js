// Numbers as a person writes them, and what is computed from rankings. Nothing here touches the page.

const MINUS = "\u2212";
const MOST_CLASSES = 200; // that are called by numbers; more are targets

/** A number with three digits that count and a true minus sign. */
function numberText(value, digits = 3) {
  if (Number.isNaN(value)) return "missing";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : MINUS + "∞";
  const size = Math.abs(value);
  if (value === 0 || (size >= 1e-4 && size < 1e5)) {
    const places = value ? Math.max(0, digits - 1 - Math.floor(Math.log10(size))) : 0;
    return value.toFixed(places).replace("-", MINUS);
  }
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${mantissa}e${Number(exponent)}`.replaceAll("-", MINUS);
}

/** A change: a number that shows its sign even if it is a plus. */
function signedText(value) {
  return (value > 0 ? "+" : "") + numberText(value);
}

/** A count with separators between thousands. */
function countText(count) {
  return count.toLocaleString("en-US");
}

/** A value of a table: whole numbers as they are, others with four digits. */
function cellText(value) {
  if (typeof value === "string") return value;
  return Number.isInteger(value) ? String(value).replace("-", MINUS) : numberText(value, 4);
}

/** Numbers of labels that are targets of a regression; null for names, and for classes that are called by numbers. */
function numbersOf(names) {
  const numbers = names.map((name) => (name.trim() === "" ? NaN : Number(name)));
  const known = numbers.filter((value) => !Number.isNaN(value));
  if (names.some((name, k) => name.trim() !== "" && !Number.isFinite(numbers[k]))) return null;
  return known.some((value) => !Number.isInteger(value)) || known.length > MOST_CLASSES ? numbers : null;
}

/** 1 plus the number of examples that are more harmful. */
function ranksOf(values, better) {
  const sign = better === "higher" ? -1 : 1;
  const order = Float32Array.from(values, (value) => sign * value).sort();
  return Uint32Array.from(values, (value) => 1 + firstAtLeast(order, Math.fround(sign * value)));
}

function firstAtLeast(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Pearson's correlation, of ranks: Spearman's. */
function correlation(a, b) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanA, meanB] = [mean(a), mean(b)];
  let [both, squaresA, squaresB] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i] - meanA, b[i] - meanB];
    both += x * y;
    squaresA += x * x;
    squaresB += y * y;
  }
  return both / Math.sqrt(squaresA * squaresB);
}

/** Number of examples among the first k of both rankings. */
function overlap(ranksA, ranksB, k) {
  let common = 0;
  for (let i = 0; i < ranksA.length; i++) common += ranksA[i] <= k && ranksB[i] <= k;
  return common;
}

/** Rows as CSV (RFC 4180). */
function csvText(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

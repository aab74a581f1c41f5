// Selects and orders the examples to show. Nothing here touches the page.

const EVERYTHING = Object.freeze({
  text: "", label: "", least: null, most: null, known: "", from: null, to: null, marked: null, box: null,
});

/** The words of a search, in lower case; what stands in quotation marks is one of them. */
function wordsOf(search) {
  return Array.from(search.toLowerCase().matchAll(/"([^"]+)"|\S+/g), ([word, quoted]) => quoted ?? word);
}

/** True if an example matches every word of a search; "#12" is example 12. */
function matchesText(examples, i, words) {
  return words.every((word) => (/^#\d+$/.test(word) ? i === Number(word.slice(1)) : examples.words(i).includes(word)));
}

/** A function that says whether an example is shown. */
function filterOf(examples, column, filter) {
  const tests = [];
  const words = wordsOf(filter.text);
  const { ranks } = column;
  if (filter.from !== null) tests.push((i) => ranks[i] >= filter.from);
  if (filter.to !== null) tests.push((i) => ranks[i] <= filter.to);
  if (filter.label !== "") {
    const code = Number(filter.label);
    tests.push((i) => examples.labels.codes[i] === code);
  }
  if (filter.least !== null) tests.push((i) => examples.labels.number(i) >= filter.least);
  if (filter.most !== null) tests.push((i) => examples.labels.number(i) <= filter.most);
  if (filter.known === "corrupt") tests.push((i) => examples.wrong(i));
  if (filter.known === "other") tests.push((i) => !examples.wrong(i));
  if (filter.marked) tests.push((i) => filter.marked.has(i));
  if (filter.box) {
    const { a, b, fromA, toA, fromB, toB } = filter.box;
    tests.push((i) => a.ranks[i] >= fromA && a.ranks[i] <= toA && b.ranks[i] >= fromB && b.ranks[i] <= toB);
  }
  if (words.length) tests.push((i) => matchesText(examples, i, words));
  return (i) => tests.every((test) => test(i));
}

/** A number per example to sort by. */
function sortKeys(examples, column, key) {
  if (key === "id") return Float64Array.from({ length: examples.count }, (_, i) => i);
  if (key === "label") return examples.labels.sortKeys();
  if (key.startsWith("cell:")) {
    const { numbers, words } = examples.table.columns[Number(key.slice(5))];
    const values = numbers ?? words.sortKeys();
    const { places } = examples.table;
    const at = (i) => (places ? (places[i] < 0 ? NaN : values[places[i]]) : values[i]);
    return Float64Array.from({ length: examples.count }, (_, i) => at(i));
  }
  return Float64Array.from(column.ranks);
}

/** Numbers of all examples in order; equal ones by rank, then by number; missing values last. */
function sortedIds(examples, column, sort) {
  const keys = sortKeys(examples, column, sort.key);
  const { ranks } = column;
  const direction = sort.reversed ? -1 : 1;
  const missing = (value) => (Number.isNaN(value) ? 1 : 0);
  return examples.everyone().sort((a, b) => missing(keys[a]) - missing(keys[b]) || direction * (keys[a] - keys[b])
    || direction * (ranks[a] - ranks[b]) || a - b);
}

/** Numbers of the examples to show, in order. */
function chosen(examples, column, filter, sort) {
  const wanted = [column, sort.key, sort.reversed];
  if (!examples.sorted || wanted.some((part, k) => part !== examples.sorted.by[k])) {
    examples.sorted = { by: wanted, ids: sortedIds(examples, column, sort) }; // kept: typing a search sorts nothing
  }
  return examples.sorted.ids.filter(filterOf(examples, column, filter));
}

/** Rows of a CSV file of some examples: everything the page knows of them but their pictures. */
function csvRows(examples, column, ids) {
  const columns = [column, ...examples.columns.filter((other) => other !== column)];
  const cells = examples.table ? examples.table.columns.map(({ name }) => name) : [];
  const optional = [
    ["label", examples.labels, (i) => examples.label(i)],
    ["true label", examples.truths, (i) => examples.truth(i)],
    ["prediction", examples.predictions, (i) => examples.prediction(i)],
    ["known corrupt", examples.corrupt, (i) => (examples.wrong(i) ? "yes" : "")],
    ["verified", examples.verified, (i) => (examples.verified[i] ? "yes" : "no")],
  ].filter(([, there]) => there);
  const heads = ["rank", "example id", ...optional.map(([name]) => name)];
  const rounded = (value) => Number(value.toPrecision(7));
  const scores = (one, i) => [rounded(one.score(i)), ...(one.errors ? [rounded(one.error(i))] : [])];
  const body = ids.map((i) => {
    const row = examples.row(i).map(([, value]) => value);
    while (row.length < cells.length) row.push("");
    return [column.ranks[i], i, ...optional.map(([, , at]) => at(i)), ...columns.flatMap((one) => scores(one, i)),
      ...row, ...(examples.texts ? [examples.text(i)] : [])];
  });
  return [[...heads, ...columns.flatMap(scoreHeads), ...cells, ...(examples.texts ? ["text"] : [])], ...body];
}

function scoreHeads(column) {
  const method = column.group === "method" ? ` (${column.method})` : "";
  return [`${column.head}${method}`, ...(column.errors ? [`standard error of ${column.query}${method}`] : [])];
}

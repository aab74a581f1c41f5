// The training examples as the page knows them, by their number.

/** Place of an example's part of a payload; -1 if it has none. */
function placesOf(ids, count) {
  if (!ids) return null;
  const places = new Int32Array(count).fill(-1);
  ids.forEach((id, place) => { places[id] = place; });
  return places;
}

/** One of few names per example. */
class Names {
  constructor(names, codes) {
    this.names = names;
    this.codes = codes;
    this.numbers = numbersOf(names);
  }

  static async read(embedded, part) {
    return new Names(await embedded.strings(part.names), await embedded.array(part.codes));
  }

  at(i) {
    return this.names[this.codes[i]];
  }

  /** The target of an example, where labels are targets of a regression; NaN if it has none. */
  number(i) {
    return this.numbers[this.codes[i]];
  }

  /** For sorting: each example's place in the alphabet, numbers by their size. */
  sortKeys() {
    if (this.numbers) return Float64Array.from(this.codes, (code) => this.numbers[code]);
    const collator = new Intl.Collator(undefined, { numeric: true });
    const order = this.names.map((_, code) => code).sort((a, b) => collator.compare(this.names[a], this.names[b]));
    const places = new Uint32Array(order.length);
    order.forEach((code, place) => { places[code] = place; });
    return Float64Array.from(this.codes, (code) => places[code]);
  }
}

/** A value per example, for those examples that have one. */
class Payload {
  constructor(values, places) {
    this.values = values;
    this.places = places;
  }

  place(i) {
    return this.places ? this.places[i] : i;
  }

  at(i) {
    const place = this.place(i);
    return place < 0 ? "" : this.values[place];
  }
}

/** A ranking: of a query of this report, of another method, or of one held-out example. */
class Column {
  constructor(entry, values, ranks, errors) {
    Object.assign(this, { method: entry.method, group: entry.group, better: entry.better, scale: entry.scale });
    Object.assign(this, { query: entry.query, about: entry.about ?? null, values, known: ranks, errors });
  }

  static async read(embedded, entry) {
    const ranks = entry.ranks ? await embedded.array(entry.ranks) : null;
    const errors = entry.errors ? await embedded.array(entry.errors) : null;
    return new Column(entry, await embedded.array(entry.values), ranks, errors);
  }

  /** What it ranks by, and for whom: two methods may answer one question. */
  get name() {
    return `${this.query}, by ${this.method}`;
  }

  score(i) {
    return this.values[i] * this.scale;
  }

  /** Standard error of the score's sampling. */
  error(i) {
    return this.errors[i] * this.scale;
  }

  /** The score, with the standard error of its sampling where it was sampled. */
  scoreText(i) {
    const text = signedText(this.score(i));
    return this.errors ? `${text} ± ${numberText(this.error(i), 2)}` : text;
  }

  harms(i) {
    return this.better === "higher" ? this.values[i] > 0 : this.values[i] < 0;
  }

  get ranks() {
    this.known ??= ranksOf(this.values, this.better);
    return this.known;
  }

  get largest() {
    this.most ??= this.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) * this.scale;
    return this.most;
  }

  /** Meaning of a score. */
  get head() {
    return this.better === "order" ? this.query : `change of ${this.query} if left out`;
  }

  /** Effect of leaving out example i, in words. */
  verdict(i) {
    const score = this.score(i);
    if (this.better === "order") return `Rank ${countText(this.ranks[i])} of ${countText(this.values.length)} by ${this.query}.`;
    if (score === 0) return `No effect on ${this.query}.`;
    const moves = score < 0 ? "lower" : "raise";
    const size = numberText(Math.abs(score));
    return `${this.harms(i) ? "Harmful" : "Helpful"}: leaving it out is predicted to ${moves} ${this.query} by ${size}.`;
  }
}

class Examples {
  static async read(embedded) {
    const { index } = embedded;
    const examples = new Examples();
    examples.count = index.count;
    examples.embedded = embedded;
    examples.columns = await Promise.all(index.columns.map((entry) => Column.read(embedded, entry)));
    examples.labels = index.labels ? await Names.read(embedded, index.labels) : null;
    examples.truths = index.truths ? await Names.read(embedded, index.truths) : null;
    examples.predictions = index.predictions ? await Names.read(embedded, index.predictions) : null;
    examples.corrupt = index.corrupt ? await embedded.array(index.corrupt) : null;
    examples.verified = index.verified ? await embedded.array(index.verified) : null;
    examples.texts = await examples.payload(index.texts);
    examples.htmls = await examples.payload(index.htmls);
    await Promise.all([examples.readTable(index.table), examples.readEpochs(index.epochs), examples.readSheets(index.sheets)]);
    return examples;
  }

  async payload(part) {
    if (!part) return null;
    const ids = part.ids ? await this.embedded.array(part.ids) : null;
    return new Payload(await this.embedded.strings(part.values), placesOf(ids, this.count));
  }

  async readTable(part) {
    this.table = null;
    if (!part) return;
    const columns = part.columns.map(async ({ name, values, names, codes }) => {
      if (values) return { name, numbers: await this.embedded.array(values) };
      return { name, words: await Names.read(this.embedded, { names, codes }) };
    });
    const ids = part.ids ? await this.embedded.array(part.ids) : null;
    this.table = { columns: await Promise.all(columns), places: placesOf(ids, this.count) };
  }

  async readEpochs(part) {
    this.epochs = null;
    if (!part) return;
    const ids = part.ids ? await this.embedded.array(part.ids) : null;
    const [values, scale] = await Promise.all([this.embedded.array(part.values), this.embedded.array(part.scale)]);
    this.epochs = { count: part.count, unit: part.unit, values, scale, places: placesOf(ids, this.count) };
  }

  async readSheets(part) {
    this.sheets = null;
    if (!part) return;
    this.sheets = { ...part, places: placesOf(await this.embedded.array(part.ids), this.count), addresses: [] };
  }

  label(i) {
    return this.labels ? this.labels.at(i) : "";
  }

  /** True label; "" if nobody knows. */
  truth(i) {
    return this.truths ? this.truths.at(i) : "";
  }

  prediction(i) {
    return this.predictions ? this.predictions.at(i) : "";
  }

  wrong(i) {
    return this.corrupt !== null && this.corrupt[i] === 1;
  }

  text(i) {
    return this.texts ? this.texts.at(i) : "";
  }

  html(i) {
    return this.htmls ? this.htmls.at(i) : "";
  }

  /** Names and values of a row; empty if it has none. */
  row(i) {
    if (!this.table) return [];
    const place = this.table.places ? this.table.places[i] : i;
    if (place < 0) return [];
    return this.table.columns.map(({ name, numbers, words }) => [name, numbers ? numbers[place] : words.at(place)]);
  }

  /** Contribution of each epoch to the score of the report's own query, or null. */
  contributions(i) {
    if (!this.epochs) return null;
    const { count, unit, values, scale, places } = this.epochs;
    const place = places ? places[i] : i;
    if (place < 0) return null;
    return Array.from(values.subarray(place * count, (place + 1) * count), (v) => (v / 32767) * scale[place] * unit);
  }

  everyone() {
    return Array.from({ length: this.count }, (_, i) => i);
  }

  /** Place of an example's picture: the address of its sheet, and its column and line there; or null. */
  picture(i) {
    const place = this.sheets ? this.sheets.places[i] : -1;
    if (place < 0) return null;
    const { across, parts, type, addresses } = this.sheets;
    const perSheet = across * across;
    const number = Math.floor(place / perSheet);
    addresses[number] ??= URL.createObjectURL(new Blob([this.embedded.bytes(parts[number])], { type }));
    const count = Math.min(perSheet, this.sheets.count - number * perSheet);
    const at = place % perSheet;
    return { address: addresses[number], column: at % across, line: Math.floor(at / across), lines: Math.ceil(count / across) };
  }

  /** All words of an example, in lower case, for searching. */
  words(i) {
    this.haystack ??= new Array(this.count);
    this.haystack[i] ??= [this.label(i), this.truth(i), this.text(i), ...this.row(i).map(([, value]) => value)]
      .join("\n").toLowerCase();
    return this.haystack[i];
  }

  /** One line about an example that has words. */
  summary(i) {
    const text = this.text(i);
    if (text) return text.length > 300 ? text.slice(0, 300) : text;
    return this.row(i).filter(([, value]) => value !== "" && !Number.isNaN(value)).map(([name, value]) => `${name} ${cellText(value)}`).join(" · ");
  }
}

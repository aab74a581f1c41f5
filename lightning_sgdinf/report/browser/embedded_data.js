// The arrays inside the page: base64 of compressed bytes, with an index that says what is where.

const ARRAYS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, f4: Float32Array, f8: Float64Array,
};

/** Bytes of base64 text. */
function base64Bytes(text) {
  if (typeof Uint8Array.fromBase64 === "function") return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** Decompress bytes of zlib. */
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Values from their byte planes: first all first bytes, then all second ones. */
function unshuffled(planes, width) {
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0, from = plane * count; i < count; i++) bytes[i * width + plane] = planes[from + i];
  }
  return bytes;
}

/** Reads what the page holds. A reference is {at, size}, in characters of the text, and a type. */
class EmbeddedData {
  constructor(index, text) {
    this.index = index;
    this.text = text;
  }

  static of(page) {
    const content = (name) => page.getElementById(name).textContent;
    return new EmbeddedData(JSON.parse(content("explorer-index")), content("explorer-data"));
  }

  bytes(reference) {
    return base64Bytes(this.text.slice(reference.at, reference.at + reference.size));
  }

  async array(reference) {
    const kind = ARRAYS[reference.type];
    const planes = await inflated(this.bytes(reference));
    return new kind(unshuffled(planes, kind.BYTES_PER_ELEMENT).buffer);
  }

  async strings(reference) {
    return JSON.parse(new TextDecoder().decode(await inflated(this.bytes(reference))));
  }
}

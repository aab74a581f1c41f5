// A list of which only the visible rows exist.

const TALLEST = 8e6; // pixels; browsers cut elements that are much taller

/**
 * Rows of one height inside a scrolling element. `make()` gives an empty row, `fill(row, position)` shows what is at a
 * position in it. Rows are used again when they leave the view.
 */
class VirtualList {
  constructor(scroller, body, make, fill) {
    Object.assign(this, { scroller, body, make, fill, pool: [], length: 0, version: 0, pending: false });
    scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(scroller);
  }

  get rowHeight() {
    return parseFloat(getComputedStyle(this.scroller).getPropertyValue("--row")) || 64;
  }

  get headHeight() {
    return this.body.offsetTop;
  }

  get room() {
    return Math.max(0, this.scroller.clientHeight - this.headHeight);
  }

  /** Pixels of the list that one pixel of scrolling is; 1 unless the list is very long. */
  get stretch() {
    const full = this.length * this.rowHeight;
    return full <= TALLEST ? 1 : Math.max(1, full - this.room) / (TALLEST - this.room);
  }

  show(length, { keepPlace = false } = {}) {
    this.length = length;
    this.version += 1;
    this.body.style.height = `${Math.min(length * this.rowHeight, TALLEST)}px`;
    if (!keepPlace) this.scroller.scrollTop = 0;
    this.paint();
  }

  refresh() {
    this.version += 1;
    this.paint();
  }

  schedule() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const height = this.rowHeight;
    const { scrollTop } = this.scroller;
    const offset = scrollTop * this.stretch;
    const first = Math.max(0, Math.floor(offset / height) - 3);
    const last = Math.min(this.length, Math.ceil((offset + this.room) / height) + 3);
    this.body.style.height = `${Math.min(this.length * height, TALLEST)}px`;
    while (this.pool.length < last - first) this.pool.push(this.body.appendChild(this.make()));
    const used = new Set();
    for (let position = first; position < last; position++) {
      const row = this.pool[position % this.pool.length];
      if (row.position !== position || row.version !== this.version) {
        Object.assign(row, { position, version: this.version });
        this.fill(row, position);
      }
      row.style.transform = `translateY(${scrollTop + position * height - offset}px)`;
      used.add(row);
    }
    for (const row of this.pool) {
      row.hidden = !used.has(row);
      if (row.hidden) row.position = -1;
    }
  }

  /** Scroll as little as is needed to see a position. */
  reveal(position) {
    const height = this.rowHeight;
    const offset = this.scroller.scrollTop * this.stretch;
    if (position * height < offset) this.scroller.scrollTop = Math.floor((position * height) / this.stretch);
    else if ((position + 1) * height > offset + this.room) {
      this.scroller.scrollTop = Math.ceil(((position + 1) * height - this.room) / this.stretch);
    }
    this.paint();
  }

  /** Rows that fit into the view. */
  get page() {
    return Math.max(1, Math.floor(this.room / this.rowHeight) - 1);
  }
}

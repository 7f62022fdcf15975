// The layers whose history is drawn. Each has a place, which picks its color.

export const MOST_CHOSEN = 8;

export class ChosenLayers {
  constructor() {
    /** @type {Map<string, number>} */
    this.places = new Map();
    this.made = false; // a choice, of no layer perhaps
  }

  /**
   * Choose these layers, the first eight of them; those chosen before keep their places.
   * @param {string[]} layers
   */
  choose(layers) {
    const next = [...new Set(layers)].slice(0, MOST_CHOSEN);
    const taken = new Set(next.map((layer) => this.places.get(layer)));
    const free = [...Array(MOST_CHOSEN).keys()].filter((place) => !taken.has(place));
    const place = (/** @type {string} */ layer) => this.places.get(layer) ?? free.shift() ?? 0;
    this.places = new Map(next.map((layer) => [layer, place(layer)]));
    this.made = true;
  }

  get names() {
    return [...this.places.keys()];
  }

  /**
   * The names after a click on `layer`: without it, or with it and the newest of the others.
   * @param {string} layer
   */
  toggled(layer) {
    const others = this.names.filter((name) => name !== layer);
    const next = others.length < this.places.size ? others : [...others, layer];
    return next.slice(-MOST_CHOSEN);
  }
}

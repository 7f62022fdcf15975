// Which steps are shown: those asked for, those there are, and the axis over them.

/**
 * The steps of an answer, each the first of `bucket_steps`.
 * @typedef {{steps: number[], bucket_steps: number}} Stepped
 */

/**
 * The steps from `from` to `to`; null, null (all of them) unless that is a span.
 * @param {number | null} from
 * @param {number | null} to
 */
export function between(from, to) {
  return from !== null && to !== null && to > from ? { from, to } : { from: null, to: null };
}

/**
 * Parameters `from` and `to` of an address as whole steps, null where there are none.
 * @param {URLSearchParams} query
 */
export function stepsOf(query) {
  const whole = (/** @type {string | null} */ text) =>
    text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
  return between(whole(query.get("from")), whole(query.get("to")));
}

/**
 * Return the steps that the answers cover together: [first, last + 1], null if there are none.
 * @param {(Stepped | null | undefined)[]} answers
 * @returns {[number, number] | null}
 */
export function covered(answers) {
  /** @type {[number, number][]} */
  const ends = answers.flatMap((answer) => {
    if (!answer?.steps.length) return [];
    const { steps, bucket_steps: bucket } = answer;
    return [[steps[0], steps[steps.length - 1] + bucket]];
  });
  if (!ends.length) return null;
  return [Math.min(...ends.map(([first]) => first)), Math.max(...ends.map(([, end]) => end))];
}

/**
 * Return the steps to show: from the first to the last. For an active run the end is the next round
 * step, so that the axis stays still while the lines grow.
 * @param {number} first
 * @param {number} last
 * @param {boolean} growing
 * @returns {[number, number]}
 */
export function stepRange(first, last, growing) {
  const reach = Math.max(last - first, 1);
  if (!growing) return [first, first + reach];
  const decade = 10 ** Math.floor(Math.log10(reach));
  const lead = reach / decade;
  const grain = Math.max(1, (decade / 10) * (lead < 2 ? 1 : lead < 5 ? 2.5 : 5));
  return [first, first + Math.ceil((reach + 1) / grain) * grain];
}

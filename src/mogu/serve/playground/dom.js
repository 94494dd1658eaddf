// Elements without markup: text is only ever text.

/** An element with these properties and children (elements or strings). */
export function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** The element of this id. */
export function the(id) {
  return document.getElementById(id);
}

/** A share as people read it. */
export function percent(share) {
  return `${(100 * share).toFixed(share > 0.0995 && share < 0.9005 ? 0 : 1)}%`;
}

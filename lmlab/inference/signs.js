// What the pages share: their data, nodes of HTML, signs and names of tokens, and the colour of surprise.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const filled = (node, {text, ...attributes}, children) => {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
};
const make = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"};
const signOf = text => SIGNS[text] || (/^[\p{C}\p{Z}]$/u.test(text) ? "U+" + text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") : /^\p{M}/u.test(text) ? "◌" + text : text);
const sign = text => [...text].map(signOf).join("") || "∅";
const nameOf = text => ({" ": "space", "\n": "line end", "\t": "tab"})[text] || sign(text);
const percent = p => p > 0.995 && p < 1 ? "> 99 %" : p >= 0.1 ? `${Math.round(100 * p)} %` : p >= 0.0001 ? `${+(100 * p).toPrecision(2)} %` : "< 0.01 %";
const MOST = 8;  // bits from which on colours don't differ
const orange = bits => `rgb(var(--surprise) / calc(var(--strong) * ${(Math.min(1, (bits ?? MOST) / MOST) ** 0.8).toFixed(3)}))`;
const partsOf = text =>  // of a span: a line end and a sign that has no form are shown beside what they are
  /^\n/.test(text) ? [make("small", {text: "↵"}), text] : /^[\p{Cc}\p{Cf}]$/u.test(text) ? [make("small", {text: sign(text)})] : [text];

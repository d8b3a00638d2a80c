// What a page does with a model: it cuts a text into tokens, reads them, and draws the next. No part of it knows of
// the screen. Numbers are as in the library, which is in Python: lmlab/models, lmlab/data, lmlab/inference/generate.py.
// Letters in shapes: T tokens, C channels, H heads of D channels each, V tokens in the vocabulary.
"use strict";

// Arrays: in the page they are bytes in base64.

function bytesIn(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const READERS = {  // by the name of a type: bytes -> numbers
  float32: bytes => new Float32Array(bytes.buffer),
  int16: bytes => Float32Array.from(new Int16Array(bytes.buffer)),
  int8: bytes => Float32Array.from(new Int8Array(bytes.buffer)),
  uint8: bytes => bytes,
  uint16: bytes => new Uint16Array(bytes.buffer),
  int32: bytes => new Int32Array(bytes.buffer),
};

function arrayIn({type, data, scales}) {  // scales: what each row of whole numbers is multiplied by
  const numbers = READERS[type](bytesIn(data));
  if (!scales) return numbers;
  const factors = READERS.float32(bytesIn(scales)), width = numbers.length / factors.length;
  factors.forEach((factor, row) => { for (let i = row * width; i < (row + 1) * width; i++) numbers[i] *= factor; });
  return numbers;
}

// Products and functions of vectors

function multiply(matrix, x, bias) {  // (N, C) and (C,) -> (N,)
  const C = x.length, N = matrix.length / C, y = new Float32Array(N);
  for (let n = 0; n < N; n++) {
    const start = n * C;
    let a = 0, b = 0, c = 0, d = 0, k = 0;  // four sums at a time are faster than one
    for (; k + 3 < C; k += 4) {
      const i = start + k;
      a += matrix[i] * x[k];
      b += matrix[i + 1] * x[k + 1];
      c += matrix[i + 2] * x[k + 2];
      d += matrix[i + 3] * x[k + 3];
    }
    for (; k < C; k++) a += matrix[start + k] * x[k];
    y[n] = a + b + c + d + (bias ? bias[n] : 0);
  }
  return y;
}

const row = (matrix, n, width) => matrix.subarray(n * width, (n + 1) * width);
const sigmoid = z => 1 / (1 + Math.exp(-z));

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

function erf(z) {  // to 1.2e-7 (the Chebyshev fit of Press et al., Numerical Recipes, section 6.2)
  const t = 1 / (1 + 0.5 * Math.abs(z));
  const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368];
  let sum = 0;
  for (const term of terms) sum = (sum + term) * t;
  const rest = t * Math.exp(-z * z - 1.26551223 + sum);
  return z < 0 ? rest - 1 : 1 - rest;
}

const BENDS = {
  gelu: z => 0.5 * z * (1 + erf(z * Math.SQRT1_2)),
  tanh: z => 0.5 * z * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (z + 0.044715 * z ** 3))),
  relu2: z => (z > 0 ? z * z : 0),
};

function softmax(scores) {  // probabilities; the scores are left as they are
  let highest = -Infinity, total = 0;
  for (const score of scores) if (score > highest) highest = score;
  const probs = Float64Array.from(scores, score => Math.exp(score - highest));
  for (const p of probs) total += p;
  return probs.map(p => p / total);
}

// The models. `next(token)` returns the scores (V,) after one more token, `after(tokens)` those after all of these.

class Bigram {
  constructor(sizes, arrays) {
    this.size = sizes.vocab_size;
    this.table = arrays.table;  // (V, V)
  }
  after(tokens) { return row(this.table, tokens.at(-1), this.size); }
}

class MLP {
  constructor(sizes, arrays) { Object.assign(this, sizes, {arrays}); }
  after(tokens) {
    const {context, n_embd, arrays} = this, x = new Float32Array(context * n_embd);
    for (let k = 0; k < context; k++) {  // the oldest first
      const token = tokens[tokens.length - context + k];
      x.set(token === undefined ? arrays.nothing : row(arrays.token_embedding, token, n_embd), k * n_embd);
    }
    const hidden = multiply(arrays["hidden.weight"], x, arrays["hidden.bias"]).map(Math.tanh);
    return multiply(arrays["head.weight"], hidden, arrays["head.bias"]);
  }
}

class LSTM {
  constructor(sizes, arrays) {
    Object.assign(this, sizes, {arrays});
    this.start();
  }
  start() {
    this.length = 0;
    this.memories = Array.from({length: this.n_layer}, () => ({h: new Float32Array(this.n_embd), c: new Float32Array(this.n_embd)}));
  }
  next(token) {
    const C = this.n_embd, {arrays} = this;
    let x = row(arrays.token_embedding, token, C);
    this.memories.forEach((memory, n) => {
      const gates = multiply(arrays[`${n}.read.weight`], x, arrays[`${n}.read.bias`]);
      add(gates, multiply(arrays[`${n}.recall.weight`], memory.h));
      const h = new Float32Array(C), c = new Float32Array(C);
      for (let i = 0; i < C; i++) {
        const write = sigmoid(gates[i]), keep = sigmoid(gates[C + i]), speak = sigmoid(gates[2 * C + i]);
        c[i] = keep * memory.c[i] + write * Math.tanh(gates[3 * C + i]);
        h[i] = speak * Math.tanh(c[i]);
      }
      Object.assign(memory, {h, c});
      x = h;
    });
    this.length++;
    return multiply(arrays["head.weight"], x, arrays["head.bias"]);
  }
}

class Transformer {  // gpt and modern: lmlab/models/gpt.py explains it
  constructor(sizes, arrays) {
    Object.assign(this, sizes, {arrays, bend: BENDS[sizes.activation], head_size: sizes.n_embd / sizes.n_head});
    const room = sizes.block_size * sizes.n_embd;
    this.caches = Array.from({length: sizes.n_layer}, () => ({keys: new Float32Array(room), values: new Float32Array(room)}));
    this.start();
  }
  start() { this.length = 0; }
  norm(x, name) {  // over all channels, or over those of a head
    const gain = this.arrays[`${name}.weight`], bias = this.arrays[`${name}.bias`], C = x.length, y = new Float32Array(C);
    let mean = 0, square = 0;
    if (this.norm_kind === "layer") for (let i = 0; i < C; i++) mean += x[i] / C;
    for (let i = 0; i < C; i++) square += (x[i] - mean) ** 2 / C;
    const factor = 1 / Math.sqrt(square + this.eps);
    for (let i = 0; i < C; i++) y[i] = (x[i] - mean) * factor * (gain ? gain[i] : 1) + (bias ? bias[i] : 0);
    return y;
  }
  turn(x) {  // channels d and d + D/2 of each head as one point of a plane
    const half = this.head_size / 2;
    for (let start = 0; start < x.length; start += 2 * half) for (let d = 0; d < half; d++) {
      const angle = this.length * 1000 ** -(half > 1 ? d / (half - 1) : 0), cos = Math.cos(angle), sin = Math.sin(angle);
      const a = x[start + d], b = x[start + half + d];
      x[start + d] = a * cos - b * sin;
      x[start + half + d] = a * sin + b * cos;
    }
  }
  attend(q, {keys, values}, looks) {  // how the new token looks goes into looks (H, S)
    const {n_embd: C, n_head, head_size: D} = this, S = this.length + 1, y = new Float32Array(C);
    for (let head = 0; head < n_head; head++) {
      const scores = new Float32Array(S);
      for (let s = 0; s < S; s++) {
        let sum = 0;
        for (let d = head * D; d < (head + 1) * D; d++) sum += q[d] * keys[s * C + d];
        scores[s] = sum * this.scale;
      }
      const weights = softmax(scores);
      looks.set(weights, head * S);
      for (let s = 0; s < S; s++) for (let d = head * D; d < (head + 1) * D; d++) y[d] += weights[s] * values[s * C + d];
    }
    return y;
  }
  next(token) {
    const C = this.n_embd, S = this.length + 1, {arrays} = this;
    let x = row(arrays.token_embedding, token, C).slice();
    if (this.positions === "learned") add(x, row(arrays.position_embedding, this.length, C));
    if (this.embedding_norm) x = this.norm(x);
    this.looks = new Float32Array(this.n_layer * this.n_head * S);  // (layers, H, S)
    this.caches.forEach((cache, n) => {
      const block = `blocks.${n}`, read = this.norm(x, `${block}.norm_1`);
      const qkv = multiply(arrays[`${block}.attention.qkv.weight`], read, arrays[`${block}.attention.qkv.bias`]);
      const [q, k, v] = [0, 1, 2].map(part => row(qkv, part, C));
      for (const one of [q, k]) {
        if (this.qk_norm) for (let h = 0; h < this.n_head; h++) row(one, h, this.head_size).set(this.norm(row(one, h, this.head_size)));
        if (this.positions === "rotary") this.turn(one);
      }
      cache.keys.set(k, this.length * C);
      cache.values.set(v, this.length * C);
      const gathered = this.attend(q, cache, this.looks.subarray(n * this.n_head * S, (n + 1) * this.n_head * S));
      add(x, multiply(arrays[`${block}.attention.proj.weight`], gathered, arrays[`${block}.attention.proj.bias`]));
      const wide = multiply(arrays[`${block}.mlp.widen.weight`], this.norm(x, `${block}.norm_2`), arrays[`${block}.mlp.widen.bias`]);
      add(x, multiply(arrays[`${block}.mlp.proj.weight`], wide.map(this.bend), arrays[`${block}.mlp.proj.bias`]));
    });
    this.length++;
    const last = this.norm(x, "norm").map(z => z * this.head_scale);
    return multiply(arrays["head.weight"] || arrays.token_embedding, last);
  }
}

class NGram {  // lmlab/models/ngram.py explains it; here counts are looked up in the sorted text, when they are needed
  constructor(sizes, arrays) {
    this.size = sizes.vocab_size;
    this.discounts = sizes.discounts;  // of each length of contexts: for counts of 1, 2, and 3 or more
    this.longest = sizes.discounts.length - 1;
    this.text = arrays.text;
    this.starts = this.sorted();
    this.rows = new Map();  // what was looked up before
  }
  sorted() {  // where each part of longest + 1 tokens begins, in the order of these parts
    const {text, size, longest} = this, n = text.length - longest;
    let order = Int32Array.from({length: n}, (_, i) => i);
    for (let k = longest; k >= 0; k--) {  // by the last token, then by those before it; equal ones keep their order
      const places = new Int32Array(size + 1), next = new Int32Array(n);
      for (const start of order) places[text[start + k] + 1]++;
      for (let token = 0; token < size; token++) places[token + 1] += places[token];
      for (const start of order) next[places[text[start + k]]++] = start;
      order = next;
    }
    return order;
  }
  find(part, from, to, after) {  // the first place in the order whose part is not below `part`, or is above it
    const {text, starts} = this;
    while (from < to) {
      const middle = from + to >> 1;
      let order = 0;
      for (let k = 0; k < part.length && !order; k++) order = text[starts[middle] + k] - part[k];
      if (order < 0 || (after && order === 0)) from = middle + 1; else to = middle;
    }
    return from;
  }
  followers(context) {  // [token, count] of what follows a context, by the counts of its length; null: never seen
    const key = context.join(), known = this.rows.get(key);
    if (known !== undefined) return known;
    const counts = context.length === this.longest ? this.counted(context) : this.kinds(context);
    this.rows.set(key, counts.size ? counts : null);
    return this.rows.get(key);
  }
  counted(context) {  // how often each token follows
    const counts = new Map(), end = this.find(context, 0, this.starts.length, true);
    for (let i = this.find(context, 0, end, false); i < end; i++) {
      const token = this.text[this.starts[i] + context.length];
      counts.set(token, (counts.get(token) || 0) + 1);
    }
    return counts;
  }
  kinds(context) {  // how many different tokens stand before the context and each token
    const {text, size, longest} = this, L = context.length, found = new Set(), counts = new Map();
    const see = start => { if (start > 0 && start + L >= longest) found.add(text[start - 1] * size + text[start + L]); };
    const end = this.find(context, 0, this.starts.length, true);
    for (let i = this.find(context, 0, end, false); i < end; i++) see(this.starts[i]);
    for (let start = this.starts.length; start + L < text.length; start++) {  // too near the end to be in the order
      if (context.every((token, k) => text[start + k] === token)) see(start);
    }
    for (const pair of found) counts.set(pair % size, (counts.get(pair % size) || 0) + 1);
    return counts;
  }
  after(tokens) {
    const probs = new Float64Array(this.size).fill(1 / this.size);
    for (let L = 0; L <= this.longest && L <= tokens.length; L++) {
      const row = this.followers(tokens.slice(tokens.length - L)), discounts = this.discounts[L];
      if (row === null) break;
      let total = 0, lost = 0;
      for (const count of row.values()) [total, lost] = [total + count, lost + discounts[Math.min(count, 3) - 1]];
      for (let token = 0; token < this.size; token++) probs[token] *= lost / total;
      for (const [token, count] of row) probs[token] += (count - discounts[Math.min(count, 3) - 1]) / total;
    }
    return Float32Array.from(probs, Math.log);
  }
}

const MODELS = {bigram: Bigram, mlp: MLP, lstm: LSTM, transformer: Transformer, ngram: NGram};

const OWN = [];  // scripts of a person's own models; each adds its class to those that it gets

function modelIn({kind, sizes, arrays, own}) {
  if (own !== undefined && !OWN[own]) throw new Error(`the script of the model ${kind} cannot be read`);
  const classes = own === undefined ? MODELS : OWN[own]({...MODELS});
  if (!classes[kind]) throw new Error(`the script of the model has made no class MODELS.${kind}`);
  const numbers = {};
  for (const [name, array] of Object.entries(arrays)) numbers[name] = arrayIn(array);
  return new classes[kind](sizes, numbers);
}

// Reading a text as the library's generate.py does: at most `block_size` tokens at once. A model with a memory, once that
// is full, starts again from the last quarter.

class Reader {
  constructor(model, block_size) { Object.assign(this, {model, block_size, count: 0}); }
  logits(tokens) {  // after the tokens, of which at most the last is new
    const {model, block_size} = this, goes_on = this.count > 0 && this.count === tokens.length - 1;
    this.count = tokens.length;
    if (!model.next) return model.after(tokens.slice(-block_size));
    if (goes_on && model.length < block_size) return model.next(tokens.at(-1));
    const kept = goes_on ? Math.max(1, block_size >> 2) : block_size;
    model.start();
    let scores;
    for (const token of tokens.slice(-kept)) scores = model.next(token);
    return scores;
  }
}

// Drawing, with the random numbers of torch's generator on a CPU: the same seed draws the same text as in the library.

class Mersenne {  // Matsumoto and Nishimura 1998
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ this.state[i - 1] >>> 30;
      this.state[i] = Math.imul(before, 1812433253) + i;
    }
    this.place = 624;
  }
  number() {  // 32 bits
    if (this.place === 624) this.twist();
    let bits = this.state[this.place++];
    bits ^= bits >>> 11;
    bits ^= bits << 7 & 0x9d2c5680;
    bits ^= bits << 15 & 0xefc60000;
    return (bits ^ bits >>> 18) >>> 0;
  }
  twist() {
    const {state} = this;
    for (let i = 0; i < 624; i++) {
      const bits = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7fffffff;
      state[i] = state[(i + 397) % 624] ^ bits >>> 1 ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.place = 0;
  }
  uniform() { return (this.number() & 0xffffff) / 2 ** 24; }  // in [0, 1)
}

function shares(logits, temperature, top_k) {  // the probabilities (V,) to draw from
  const probs = new Float64Array(logits.length);
  if (temperature === 0) {
    probs[logits.indexOf(logits.reduce((a, b) => Math.max(a, b)))] = 1;
    return probs;
  }
  probs.set(softmax(logits.map(z => z / temperature)));
  if (!top_k || top_k >= probs.length) return probs;
  const kept = likeliest(probs, top_k);
  const total = kept.reduce((sum, token) => sum + probs[token], 0);
  const left = new Float64Array(probs.length);
  for (const token of kept) left[token] = probs[token] / total;
  return left;
}

function likeliest(probs, n) {  // the n tokens with the highest probabilities, the highest first
  const best = [];
  for (let token = 0; token < probs.length; token++) {
    if (best.length === n && probs[token] <= probs[best[n - 1]]) continue;
    let place = best.length;
    while (place > 0 && probs[best[place - 1]] < probs[token]) place--;
    best.splice(place, 0, token);
    if (best.length > n) best.pop();
  }
  return best;
}

function draw(probs, random) {  // the first token whose cumulative sum exceeds a random number
  let total = 0, sum = 0, token = 0;
  for (const p of probs) total += p;
  const level = random.uniform() * total;
  for (; token < probs.length - 1; token++) {
    sum += probs[token];
    if (sum > level) break;
  }
  return token;
}

// Tokenizers. `encode` returns {ids, unknown}, the characters that no token stands for; `bytes` are those of a token.

const utf8 = text => Uint8Array.from(unescape(encodeURIComponent(text.toWellFormed())), char => char.charCodeAt(0));

class Characters {
  constructor({chars}) {
    this.chars = chars;
    this.ids = new Map(chars.map((char, id) => [char, id]));
  }
  encode(text) {
    const all = [...text], known = all.filter(char => this.ids.has(char));
    return {ids: known.map(char => this.ids.get(char)), unknown: [...new Set(all.filter(char => !this.ids.has(char)))]};
  }
  bytes(id) { return utf8(this.chars[id]); }
}

class Bytes {
  encode(text) { return {ids: [...utf8(text)], unknown: []}; }
  bytes(id) { return Uint8Array.of(id); }
}

// Python's and the library's \s, which is not JavaScript's.
const WORDS = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`;

class Pairs {  // pairs of bytes, merged (Sennrich et al. 2016; bytes: Radford et al. 2019)
  constructor({tokens, merges, cuts, added, normalize, whole_words}) {
    Object.assign(this, {normalize, whole_words});
    this.letters = Pairs.letters();
    this.byteOf = new Map(this.letters.map((letter, byte) => [letter, byte]));
    this.tokens = tokens;  // a letter stands for each byte
    this.ids = new Map(tokens.map((token, id) => [token, id]));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    this.cuts = cuts.map(cut => new RegExp(cut ?? WORDS, "gu"));
    this.added = new Map(Object.entries(added));  // texts that are tokens by themselves
    for (const [text, id] of this.added) this.tokens[id] = [...utf8(text)].map(byte => this.letters[byte]).join("");
    const escaped = [...this.added.keys()].sort((a, b) => b.length - a.length).map(text => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.border = added && escaped.length ? new RegExp(`(${escaped.join("|")})`, "u") : null;
  }
  static letters() {  // GPT-2's printable letter for each byte
    let others = 256;
    return Array.from({length: 256}, (_, byte) => {
      const prints = (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || byte > 173;
      return String.fromCodePoint(prints ? byte : others++);
    });
  }
  encode(text) {
    const ids = [];
    for (const part of this.border ? text.split(this.border) : [text]) {
      if (this.added.has(part)) ids.push(this.added.get(part));
      else for (const word of this.words(part)) ids.push(...this.merged(word));
    }
    return {ids, unknown: []};
  }
  words(text) {
    let words = [this.normalize ? text.toWellFormed().normalize(this.normalize) : text.toWellFormed()];
    for (const cut of this.cuts) words = words.flatMap(word => Pairs.split(word, cut));
    return words.map(word => Array.from(utf8(word), byte => this.letters[byte]));
  }
  static split(text, cut) {  // the matches, and what stands between them
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(cut)) {
      parts.push(text.slice(end, match.index), match[0]);
      end = match.index + match[0].length;
    }
    return [...parts, text.slice(end)].filter(part => part);
  }
  merged(letters) {  // the ids of a word
    const whole = this.ids.get(letters.join(""));
    if (this.whole_words && whole !== undefined) return [whole];
    let parts = letters;
    while (parts.length > 1) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) break;
      parts = [...parts.slice(0, place), parts[place] + parts[place + 1], ...parts.slice(place + 2)];
    }
    return parts.map(part => this.ids.get(part));
  }
  bytes(id) { return Uint8Array.from(this.tokens[id] ?? "", letter => this.byteOf.get(letter)); }
}

const TOKENIZERS = {char: Characters, byte: Bytes, bpe: Pairs};
const tokenizerIn = values => new TOKENIZERS[values.kind](values);

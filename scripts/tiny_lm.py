"""A language model from nothing but numpy: given a character, guess the next one.

The whole idea in one loop: predict, measure the loss, nudge the weights, repeat; then generate.
Run it: python scripts/tiny_lm.py
"""

from argparse import ArgumentParser

import numpy as np  # not found? type: . .venv/bin/activate (after make install)

# The data: text, and for every character of it the character that follows.
text = "hello world\n" * 16
chars = sorted(set(text))
V = len(chars)  # 9 different characters
ids = np.array([chars.index(c) for c in text])
now, following = ids[:-1], ids[1:]

# The model: a table W. Row c scores every character as what may come after c; all alike at first.
W = np.zeros((V, V))


def softmax(scores):
    """From scores to probabilities: all positive, each row adding up to 1."""
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def train(steps=200, lr=10.0):
    """Changes W step by step and returns the loss of every step."""
    losses = []
    for step in range(steps):
        # Predict: for each character of the text, how likely is each next one?
        probs = softmax(W[now])  # (N, V)
        # The loss: how surprised the model was by what really came, on average.
        losses.append(-np.log(probs[np.arange(len(now)), following]).mean())
        # The gradient: which way does each score push the loss? Worked out by hand, it is the
        # probability given minus the one that was wanted (1 for what came, 0 for the rest).
        probs[np.arange(len(now)), following] -= 1
        gradient = np.zeros_like(W)
        np.add.at(gradient, now, probs / len(now))
        # The nudge: a small step the other way.
        W[:] -= lr * gradient
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:>3}  loss {losses[-1]:.3f}")
    return losses


def generate(length, seed=0):
    """Draws a character by the model's probabilities, appends it, repeats."""
    random = np.random.default_rng(seed)
    c, out = chars.index("h"), "h"
    for _ in range(length):
        c = random.choice(V, p=softmax(W[c]))
        out += chars[c]
    return out


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()  # it has no options
    train()
    print(generate(60))

"""A GPT in miniature, in plain PyTorch, with the training loop in the open.

Unlike the bigram of tiny_lm.py it looks at all the recent text and decides what matters.
Run it: python scripts/nanogpt_mini.py
"""

import time
from argparse import ArgumentParser

import torch  # not found? type: . .venv/bin/activate (after make install)
import torch.nn.functional as F
from torch import nn

block_size = 64  # T: how many characters it sees at once
batch_size = 12  # B: pieces of text a step
n_layer = 3  # blocks
n_head = 4  # attention heads a block
n_embd = 64  # C: numbers that stand for a character
steps = 1000
lr = 1e-3


class Attention(nn.Module):
    """Each character gathers from the ones before it what helps to guess the next."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        # For every head a query (what do I look for?), a key (what am I?) and a value (what do I
        # tell?), each (B, heads, T, D).
        D = C // n_head
        q, k, v = (
            part.view(B, T, n_head, D).transpose(1, 2) for part in self.qkv(x).split(C, dim=2)
        )
        scores = q @ k.transpose(2, 3) / D**0.5  # (B, heads, T, T): who interests whom
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))  # nobody sees what comes later
        weights = scores.softmax(-1)
        gathered = (weights @ v).transpose(1, 2).reshape(B, T, C)
        return self.proj(gathered)


class MLP(nn.Module):
    """Each character thinks about what it gathered."""

    def __init__(self):
        super().__init__()
        self.widen = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.proj = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x):
        return self.proj(F.gelu(self.widen(x)))


class Block(nn.Module):
    """Both, each on a normalised copy, its answer added to x (a residual connection)."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(n_embd, bias=False), Attention()
        self.norm_2, self.mlp = nn.LayerNorm(n_embd, bias=False), MLP()

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """From token ids (B, T) to a score for every possible next token (B, T, V)."""

    def __init__(self, vocab_size):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, n_embd)  # what it is
        self.position_embedding = nn.Embedding(block_size, n_embd)  # where it stands
        self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd, bias=False)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight  # one table, read both ways
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, idx):
        x = self.token_embedding(idx) + self.position_embedding.weight[: idx.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(model, get_batch, steps):
    """The loop: predict the next token, measure the loss, nudge the weights, repeat."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    start = time.time()
    for step in range(steps):
        idx, targets = get_batch(step)  # each (B, T); targets are idx one character later
        logits = model(idx)  # predict: (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # measure
        optimizer.zero_grad()
        loss.backward()  # which way does each weight push the loss?
        optimizer.step()  # nudge
        losses.append(loss.item())
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:>4}  loss {losses[-1]:.3f}  {time.time() - start:.0f} s", flush=True)
    return losses


@torch.no_grad()
def generate(model, idx, length):
    """Predict, draw, append, repeat."""
    for _ in range(length):
        logits = model(idx[:, -block_size:])[:, -1]
        idx = torch.cat([idx, torch.multinomial((logits / 0.8).softmax(-1), 1)], dim=1)
    return idx


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()  # it has no options
    from pydoc_data.topics import topics  # half a megabyte of English that comes with every Python

    torch.manual_seed(0)
    text = "\n".join(topics[name] for name in sorted(topics))
    chars = sorted(set(text))
    data = torch.tensor([chars.index(c) for c in text])

    def random_batch(step):
        starts = torch.randint(len(data) - block_size, (batch_size, 1))
        pieces = data[starts + torch.arange(block_size + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    model = GPT(len(chars))
    train(model, random_batch, steps)
    print("".join(chars[i] for i in generate(model, data[None, :1], 400)[0]))

"""Reinforcement learning: a policy that has to remember.

At the entrance of a corridor a sign says which way to turn at its end, some steps later. Many
corridors are walked side by side, and whoever has turned begins anew, so that episodes end at steps
of their own. To act, a stream makes one step for all; `stream.reset(rows)` forgets where an episode
begins. To learn, the same steps go through `forward` at once, with `reset`: neither states nor
gradients cross from one episode into the next, and what is computed are the bits that were acted
on. REINFORCE (Williams, 1992): what was done is made likelier by how much more it brought than
usual.

    python examples/policy.py
"""

import numpy as np

import rnnkernel as rk

WALKERS, T, HIDDEN, WINDOWS = 64, 40, 32, 60
SHORTEST, LONGEST = 4, 12
SIGN, END, NOISE = range(3)  # what a walker sees: -1 or 1 at the entrance, 1 at the end, noise


class Corridors:
    def __init__(self, rng, count):
        self.rng = rng
        self.sign, self.length, self.place = (np.zeros(count, np.int64) for _ in range(3))
        self.begin(np.ones(count, bool))

    def begin(self, who):
        count = np.count_nonzero(who)
        self.sign[who] = self.rng.choice([-1, 1], count)
        self.length[who] = self.rng.integers(SHORTEST, LONGEST + 1, count)
        self.place[who] = 0

    def see(self):
        """(N, 3), and who is at the entrance and who at the end."""
        at_entrance, at_end = self.place == 0, self.place == self.length
        x = np.empty((len(self.place), 3), np.float32)
        x[:, SIGN] = np.where(at_entrance, self.sign, 0)
        x[:, END] = at_end
        x[:, NOISE] = 0.3 * self.rng.standard_normal(len(x))
        return x, at_entrance, at_end

    def turn(self, right):
        """Everyone walks on, those at the end to the right or the left; what that brings."""
        at_end = self.place == self.length
        reward = np.where(at_end, np.where(right == (self.sign > 0), 1.0, -1.0), 0.0)
        self.place += 1
        self.begin(at_end)
        return reward


def walk(corridors, stream, readout, rng):
    """T steps of all: what was seen, where episodes began and ended, what was done and brought."""
    steps = []
    for _ in range(T):
        x, begins, ends = corridors.see()
        stream.reset(rows=begins)
        logits = readout(stream.step(x)).astype(np.float64)
        done = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from the softmax
        steps.append((x, begins, ends, done, corridors.turn(done == 1)))
    return (np.array(each) for each in zip(*steps, strict=True))


def main(windows=WINDOWS, seed=0):
    rng = np.random.default_rng(seed)
    layer = rk.GRU(3, HIDDEN, rng=rng)
    readout = rk.Linear(HIDDEN, 2, rng=rng)
    adam = rk.Adam([layer.parameters, readout.parameters], lr=1e-2)
    corridors = Corridors(rng, WALKERS)
    state, usual, shares = None, 0.0, []

    for window in range(1, windows + 1):
        stream = layer.stream(WALKERS)  # with the weights as they are now
        if state is not None:
            stream.state = state
        x, begins, ends, done, reward = walk(corridors, stream, readout, rng)
        out = layer.forward(x, state, reset=begins, training=True)
        assert np.array_equal(out.state, stream.state)
        state = out.state

        y, taken, gain = out.y[ends], done[ends], reward[ends] - usual
        usual += 0.1 * (np.mean(reward[ends]) - usual)
        _, dlogits = rk.softmax_cross_entropy(readout(y), taken)  # of -log p(taken), averaged
        of_readout = readout.backward(y, (dlogits * gain[:, np.newaxis]).astype(np.float32))
        dy = np.zeros_like(out.y)
        dy[ends] = of_readout.x
        grads = layer.backward(out, dy, input_grad=False)
        rk.clip_grad_norm(grads.parameters, 1.0)
        adam.step([grads.parameters, of_readout.parameters])
        shares.append(np.mean(reward[ends] > 0))
        if window % 10 == 0:
            print(f"{window * T} steps: {np.mean(shares[-10:]):.1%} of the latest turns are right")
    return float(np.mean(shares[-10:]))


if __name__ == "__main__":
    main()

"""Encoder and decoder: say a word backwards.

The encoder reads the word, of any length; its final state is all that the decoder gets. The decoder
is told its last letter at each step, in training the right one, and predicts the next. Backwards
the same chain: the decoder's gradient of its initial state is the encoder's of its final one.

    python examples/encoder_decoder.py
"""

import numpy as np

import rnnkernel as rk

LETTERS, LONGEST = 12, 6
BEGIN = END = LETTERS  # one more class: before the decoder's first letter, and after its last
CLASSES, WIDTH, HIDDEN = LETTERS + 1, 16, 96
BATCH, STEPS = 64, 900


class Model:
    def __init__(self, rng):
        self.embedding = (0.5 * rng.standard_normal((CLASSES, WIDTH))).astype(np.float32)
        self.encoder = rk.LSTM(WIDTH, HIDDEN, forget_bias=1.0, rng=rng)
        self.decoder = rk.LSTM(WIDTH, HIDDEN, forget_bias=1.0, rng=rng)
        self.readout = rk.Linear(HIDDEN, CLASSES, rng=rng)

    @property
    def parameters(self):
        layers = (self.encoder, self.decoder, self.readout)
        return [{"embedding": self.embedding}, *(layer.parameters for layer in layers)]

    def loss_and_gradients(self, words, lengths):
        heard, wanted = answers(words, lengths)
        # ids: the rows of the embedding are read where they lie
        read = self.encoder.forward(words, lengths=lengths, embedding=self.embedding, training=True)
        said = self.decoder.forward(
            heard, read.state, lengths=lengths + 1, embedding=self.embedding, training=True
        )
        spoken = np.arange(len(heard))[:, np.newaxis] <= lengths  # not past the end
        loss, dlogits = rk.softmax_cross_entropy(self.readout(said.y[spoken]), wanted[spoken])
        of_readout = self.readout.backward(said.y[spoken], dlogits)
        dy = np.zeros_like(said.y)
        dy[spoken] = of_readout.x
        of_decoder = self.decoder.backward(said, dy)
        of_encoder = self.encoder.backward(read, dstate=of_decoder.state)
        embedding = {"embedding": of_encoder.embedding + of_decoder.embedding}
        return loss, [
            embedding,
            of_encoder.parameters,
            of_decoder.parameters,
            of_readout.parameters,
        ]

    def answer(self, words, lengths):
        """What the decoder says to words (T, N) when it is told what it has said itself."""
        _, state = self.encoder(words, lengths=lengths, embedding=self.embedding)
        stream = self.decoder.stream(batch_size=len(lengths))
        stream.state = state
        letter, said = np.full(len(lengths), BEGIN), []
        for _ in range(LONGEST + 1):
            letter = self.readout(stream.step(letter, embedding=self.embedding)).argmax(axis=1)
            said.append(letter)
        return np.array(said)


def some_words(rng, count):
    """(LONGEST, N) ids and their lengths (N,); past the end of a word nobody looks."""
    return rng.integers(0, LETTERS, (LONGEST, count)), rng.integers(1, LONGEST + 1, count)


def answers(words, lengths):
    """What the decoder is to hear and to say, (LONGEST + 1, N) each."""
    t = np.arange(LONGEST + 1)[:, np.newaxis]
    backwards = np.take_along_axis(words, np.maximum(lengths - 1 - t, 0), axis=0)
    wanted = np.where(t < lengths, backwards, END)
    return np.concatenate([np.full((1, len(lengths)), BEGIN), wanted[:-1]]), wanted


def main(steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    model = Model(rng)
    adam = rk.Adam(model.parameters)
    for step in range(1, steps + 1):
        adam.lr = 1e-2 * (1 - step / (steps + 1))
        loss, gradients = model.loss_and_gradients(*some_words(rng, BATCH))
        rk.clip_grad_norm(gradients, 1.0)
        adam.step(gradients)
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}")

    words, lengths = some_words(rng, 500)
    _, wanted = answers(words, lengths)
    said = model.answer(words, lengths)
    right = float(np.mean(((said == wanted) | (np.arange(LONGEST + 1)[:, None] > lengths)).all(0)))
    print(f"{right:.1%} of 500 words are said backwards without a mistake")
    return right


if __name__ == "__main__":
    main()

"""Decoding as it is defined: one row at a time, the whole sequence anew for every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from thinkfirst.kernels.sample import api as sample_kernel


@functools.cache
def _drawer(model, width):
    def draw(params, adapter, row_1T, length, key, limits):
        segment_1T = (jnp.arange(width) < length)[None].astype(jnp.int32)
        hidden_1TD = model.hidden(params, row_1T, segment_BT=segment_1T, adapter=adapter)
        return sample_kernel.sample(
            hidden_1TD[:, length - 1], params["embedding"], key[None], **limits, soft_cap=model.config.final_soft_cap
        )

    return jax.jit(draw)


def rollout(model, params, adapter, prompts, sampling, key, *, group, stop_ids):
    """(tokens, log-probs, whether it stopped) of every row, in order; limits may be one for each row."""
    limits = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    room_B = np.broadcast_to(sampling.max_new_tokens, len(prompts.length_P) * group)
    width = prompts.tokens_PT.shape[1] + int(room_B.max())
    draw, found = _drawer(model, width), []
    for row, room in enumerate(room_B):
        prompt, sample = divmod(row, group)
        of_row = jax.random.fold_in(jax.random.fold_in(key, prompts.id_P[prompt]), sample)
        length = int(prompts.length_P[prompt])
        row_T, logps, stopped = np.zeros(width, np.int32), [], False
        row_T[:length] = prompts.tokens_PT[prompt, :length]
        while len(logps) < room and not stopped:
            place = np.int32(length + len(logps))
            token, logp, _ = draw(params, adapter, row_T[None], place, jax.random.fold_in(of_row, len(logps)), limits)
            row_T[place] = token[0]
            logps.append(float(logp[0]))
            stopped = int(token[0]) in stop_ids
        found.append((row_T[length : length + len(logps)].tolist(), logps, stopped))
    return found

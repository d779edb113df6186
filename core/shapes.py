"""The one alphabet of dimensions: every suffix, einsum, annotation and sharding spells shapes with these letters.

`x_BTD` is a tensor of logical shape [B, T, D]; a suffix never names the local shard of a mesh.
"""

LETTERS: dict[str, str] = {
    "B": "rows of a batch: P prompts x G samples, sample g of prompt p at row p * G + g",
    "P": "prompts",
    "G": "samples per prompt (the group of GRPO)",
    "E": "lanes of the rollout engine: rows that are decoded side by side",
    "Q": "prompts that are resident in the rollout engine",
    "T": "tokens of a sequence",
    "S": "slots of a key/value cache",
    "D": "model width",
    "F": "width of the feed-forward layer",
    "N": "query heads",
    "K": "key/value heads",
    "J": "query heads that share one key/value head, N = K * J",
    "H": "width of one head",
    "V": "vocabulary",
    "R": "rank of an adapter",
    "L": "stacked layers, the axis a scan walks over",
    "C": "chunks a long axis is cut into",
    "M": "micro-batches of one optimiser step",
}

"""Beyond the paper: what later work adds to self-training, each a switch that is off by default, one file each.

| loss      | file            | what it asks                                                                |
|-----------|-----------------|-----------------------------------------------------------------------------|
| `entropy` | `entropy.py`    | the network should be sure of its answers on the target                     |
| `online`  | `teacher.py`    | the student should agree with its own moving average on target images       |
| `mixed`   | `classmix.py`   | ... on target images under pasted source classes                            |
| `masked`  | `masking.py`    | ... on target images of which most is covered                               |

`lessons.py` makes the images, labels and weights of the last three; their loss is one weighted cross-entropy.
"""

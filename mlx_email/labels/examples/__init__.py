"""What a model is trained on, made of labelled rows.

A row by itself is a demonstration (supervised fine-tuning) and a prompt (GRPO). Made of rows: `pairs` of messages of
which one was put first (reward model), `contrasts` of a right and a wrong action (DPO), `unpaired` actions that are
desirable or not (KTO), `windows` of time with what came after (temporal stages), and `augment`ed rows.

All of them are functions of the rows and a seed: neither the order of the rows nor another owner's mail changes them.
"""

"""The embedded mailbox: mail that never was, written like an Outlook-era Enron maildir, with a known best accuracy.

`mailbox` writes it, `grammar` finds the words, `rule` says what the owner does; `pretrain` makes the tiny model that
ships with the package from the same grammar. Nobody and nothing in it is real: every address ends in `.example`.
"""

"""Raw text -> tokenizer -> token shards with a manifest.

This package imports nothing else of Headwater. Training reads what it writes through
`data_tools.shard_format` and `data_tools.tokenizer`.
"""

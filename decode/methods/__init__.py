"""The decoding methods: policies, draws and searches, and what all of them write with.

Methods are coroutines that await the ops of ``trimtab.decode.ops``; they import neither torch nor the engine.
"""

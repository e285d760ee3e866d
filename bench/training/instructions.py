"""Prompts that a chat model writes itself: its own user turns, continued from beginnings of our own making.

A chat model that is shown an opened user turn writes one. That gives instructions of any kind without a data set; the
beginnings steer what kinds, and code comes as function headers whose name is put together from two lists.
"""

from __future__ import annotations

import random

from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.text.templates import PromptTemplate

__all__ = ["beginnings", "opened_user_turn"]

_MARK = "@"

_TASKS = (
    "What is", "What are", "What are some", "What would", "How do I", "How can I", "How does", "How would you", "Why",
    "Who", "Which", "Can you", "Could you", "Explain", "Explain how", "Describe", "Give me", "Give me a list of",
    "List", "Name", "Suggest", "Recommend", "Tell me", "Tell me about", "Write a short story about",
    "Write an email to",
    "Write a poem about", "Write a letter", "Write a product description for", "Write a summary of",
    "Write a recipe for",
    "Write a blog post about", "Write instructions for", "Write a dialogue between", "Create", "Create a plan for",
    "Design", "Generate", "Imagine", "Plan", "Compare", "What is the difference between", "Identify", "Classify",
    "Edit", "Rewrite", "Correct", "Is it", "Do you", "Should I", "I am", "I need", "I want to", "I have", "My",
    "Please",
    "Help me", "Given", "In this task,", "Discuss", "Analyze", "Outline", "Brainstorm", "Invent", "Act as", "Pretend",
    "Provide", "Make a table of", "Calculate", "Solve", "If", "Suppose", "There are", "A", "The", "In", "On", "When",
)  # fmt: skip
_QUESTIONS = (
    "who ", "who was ", "who wrote ", "when did ", "when was ", "where is ", "where does ", "what is the name of ",
    "how many ", "what year did ", "which country ", "who plays ", "what does ", "when is ", "where was ",
)  # fmt: skip
_TEXTS = (
    "Summarize: ", "Summarize the following text: ", "Translate German to English: ", "Translate to English: ",
    "Translate German to English: Die", "Translate German to English: Der", "Translate German to English: Das",
    "Translate German to English: Ich", "Translate German to English: Es", "Summarize: The", "Summarize: A",
    "Answer the question from the text. Text: ", "Find the main idea of this paragraph: ",
)  # fmt: skip
_SUMS = (
    "A farmer has", "A shop sells", "Tom has", "Anna buys", "A train leaves", "A baker makes", "There are 24",
    "A class of", "Each box holds", "A tank holds", "Maria earns", "A rope of", "Ben reads", "A team of", "Sara walks",
)  # fmt: skip
_CODE = (
    "Write a Python function",
    "Write a program that",
    "Write a function that",
    "Fix this code:",
    "How do I write a",
)
_VERBS = (
    "count", "find", "sum", "remove", "sort", "is", "get", "max", "reverse", "filter", "convert", "check", "split",
    "merge", "parse", "select", "replace", "rotate", "has", "make",
)  # fmt: skip
_NOUNS = (
    "vowels", "numbers", "words", "pairs", "digits", "list", "string", "primes", "duplicates", "matrix", "intervals",
    "brackets", "palindrome", "sorted", "even", "substring", "letters", "elements", "smallest", "average", "factors",
    "binary", "date", "triangle", "sequence", "sentence", "file_name", "tree", "grid", "distance",
)  # fmt: skip
_HEADS = ("\ndef {}(", "from typing import List\n\n\ndef {}(", "\n\ndef {}(", "def {}(")


def beginnings(count: int, seed: int) -> list[str]:
    """``count`` beginnings of user turns: a third instructions, the rest questions, texts, sums, code and nothing."""
    draw = random.Random(f"beginnings {seed}")
    kinds = (_TASKS, _TASKS, _TASKS, _QUESTIONS, _TEXTS, _SUMS, _CODE, ("",), None, None)
    chosen = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        if kind is None:
            chosen.append(draw.choice(_HEADS).format(f"{draw.choice(_VERBS)}_{draw.choice(_NOUNS)}"))
        else:
            chosen.append(draw.choice(kind))
    return chosen


def opened_user_turn(template: PromptTemplate) -> tuple[str, str]:
    """What a chat template writes before and after the text of a single user message.

    Raises:
        UnsupportedModel: the template doesn't write the message as it is, or writes nothing after it.
    """
    text = template.text((ChatMessage("user", _MARK),))
    before, found, after = text.partition(_MARK)
    if not found or not after or _MARK in after:
        raise UnsupportedModel(template.vocabulary.name, "its chat template has no user turn that can be left open")
    return before, after

"""Prompts of the project's own making, from under ten tokens to over four hundred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["PROMPTS", "spaced"]

T = TypeVar("T")

_HARBOUR = (
    "The harbour master keeps a book in which every ship is entered with its draught, its cargo and the state of the "
    "tide when it crossed the bar. On Monday the collier Anna came in on the morning flood with four hundred tons of "
    "coal and drew eleven feet. The Two Brothers, a schooner with timber from the north, waited outside until the "
    "evening because she drew thirteen. On Tuesday nothing moved: the wind stood in the east, and the pilot would not "
    "go out. On Wednesday the Anna left in ballast, and the Two Brothers was warped to the berth under the crane. Her "
    "master complained that two of his hands had deserted, and asked the harbour master to look for them in the inns "
    "along the quay. They were found on Thursday, asleep in a sail loft."
)
_KITCHEN = (
    "A small kitchen serves soup, bread and one hot dish. Soup is made in the morning and keeps for a day. Bread comes "
    "at six and is stale by the evening. The hot dish changes daily: lentils on Monday, fish pie on Tuesday, stew on "
    "Wednesday, pancakes on Thursday, fish again on Friday. Guests pay four euros for soup with bread, seven for the "
    "hot dish, and ten for both. On an ordinary day forty guests come; on a rainy day twenty-five."
)
_LETTER = (
    "Dear Ms Okafor, thank you for the parcel, which arrived on the third. Two of the six lamps had broken glass, and "
    "the invoice lists eight. I would like to keep the four good ones, send back the broken pair, and pay for what I "
    "keep. Please tell me where to send them and who pays the postage. I also ordered a roll of green cord in May, "
    "which has not come; if it is out of stock, cancel it. Yours, T. Lindqvist"
)
_CODE = (
    "def merge(left, right):\n    result = []\n    i = j = 0\n    while i < len(left) and j < len(right):\n"
    "        if left[i] < right[j]:\n            result.append(left[i])\n            i += 1\n        else:\n"
    "            result.append(right[j])\n            j += 1\n    return result + left[i:]\n"
)
_TABLE = (
    "station, height in metres, mean temperature in January, mean temperature in July, rain in millimetres\n"
    "Oldfield, 12, 3.1, 17.4, 640\nMarsh End, 4, 3.4, 17.1, 655\nCold Ridge, 610, -1.9, 12.2, 1480\n"
    "Weir Bridge, 95, 1.8, 17.9, 790\nHigh Barrow, 340, 0.2, 14.8, 1120\nSandhaven, 2, 4.6, 16.9, 600\n"
)

PROMPTS: tuple[str, ...] = (
    "Give me three tips for staying healthy.",
    "Why is the sky red in the evening?",
    "Write a short poem about a lighthouse in winter.",
    "Explain to a ten-year-old how a bicycle stays upright, without using the word force.",
    "List five things to check before renting a flat in a city that you don't know, and say why each matters.",
    (
        "My train leaves at 14:20 and the walk to the station takes 25 minutes. I want to be there ten minutes early "
        "and "
        "need five minutes to pack. When must I start, and what should I do if it rains and I walk half as fast?"
    ),
    (
        "Compare paper maps and navigation by telephone for a week of walking in the mountains. Consider weight, "
        "weather, "
        "batteries, accuracy and what happens when something breaks, and finish with a recommendation for a beginner."
    ),
    f"What does this function do, and which of its inputs give a wrong result?\n\n{_CODE}",
    f"Answer this letter politely on behalf of the shop, in at most eight sentences.\n\n{_LETTER}",
    (
        f"How much does the kitchen take on an ordinary day if a quarter of the guests have soup, half the hot dish, "
        f"and "
        f"the rest both? Show the steps.\n\n{_KITCHEN}"
    ),
    f"Which two stations are most alike, and which one is the odd one out? Give reasons from the figures.\n\n{_TABLE}",
    f"Summarise the week in three sentences.\n\n{_HARBOUR}",
    (
        f"Rewrite the function so that it returns all of its input, add a docstring, and write three tests for it. "
        f"Then "
        f"compare it with the standard library's way of merging.\n\n{_CODE}\n\nThe function is called like this:\n\n"
        "print(merge([1, 3, 5], [2, 4, 6, 8]))\nprint(merge([], [7]))\nprint(merge([9], []))\n"
    ),
    (
        f"Plan the menus and the purchases of this kitchen for a week with two rainy days, so that as little as "
        f"possible "
        f"is thrown away.\n\n{_KITCHEN}\n\nA baker nearby sells bread of the day before at half the price. Fish has "
        f"to be "
        "ordered two days ahead, and what is not cooked on the day that it comes must be thrown away."
    ),
    (
        f"Read the report and the letter. Write down everything that somebody still has to do, who that is, and by "
        f"when.\n\n{_HARBOUR}\n\n{_LETTER}"
    ),
    (
        f"Here are a report, a description and a table from three different books. For each of them say in one "
        f"paragraph "
        f"who may have written it and why.\n\n{_HARBOUR}\n\n{_KITCHEN}\n\n{_TABLE}"
    ),
)


def spaced(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items`` at even distances, ends included; repeated from the start where there are too few.

    Raises:
        ValueError: no items, or a count below 1.
    """
    if not items or count < 1:
        raise ValueError(f"{count} of {len(items)} items: accepted: at least one of each")
    if count > len(items):
        return [items[i % len(items)] for i in range(count)]
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]

"""Results as people look at them: who wrote each part of the text, figures of an answer, and a page that shows both.

Only what is made of a result alone; how a terminal shows an answer as it comes is the command line's.
"""

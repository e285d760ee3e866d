"""Requests and answers as plain frozen data: what may be asked for, how it is read and how it is checked.

It is read from keywords, from JSON and from one line of text. Nothing here imports torch, the engine or the working of
a method. Field names are the proto's, so that an error names the same path in the library and over gRPC. All logarithms
are natural, all times are seconds.
"""

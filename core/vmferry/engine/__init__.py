"""The protocol itself: PUSH, STOP, PULL, each phase's dialogue with both ends in one file.

``source`` and ``stay``/``destination`` sequence the phases at the two hosts, ``agent`` serves many
jobs at the destination. The rest is what they are made of: the data path (``sender``,
``receiver``), the pull disk (``pulldisk`` and its parts), limits, policy, journal.
"""

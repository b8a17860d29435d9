"""Small eBPF programs made, loaded and read without a compiler or a library.

``assembler`` writes instructions, ``btf`` finds where the running kernel keeps a field, ``kernel``
speaks the ``bpf(2)`` system call. What is here knows nothing of disks.
"""

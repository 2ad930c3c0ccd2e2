"""From files to step batches: readers, formats, text, prepared caches.

numpy only; nothing here is compiled.
"""

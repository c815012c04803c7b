"""How a diagnosis is told: as text for a person, as a JSON document for programs, as one line where many are asked.

Pure: a Diagnosis goes in, text or a document comes out; nothing here decides what is wrong.
"""

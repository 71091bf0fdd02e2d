"""The attribute language of Mixer 1.4: expressions over attributes, their types and values.

Pure. Text becomes a `Program` (`program.compile_expression`), which answers a value for a bag of
attributes and says which attributes it looked at.
"""

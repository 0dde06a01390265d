"""A campaign of bad, odd and unusual inputs against the whole public API: ``python tests/bad_inputs`` counts outcomes.

Each row is a call and what is wanted of it: refused by an error that names the argument and the value, or taken with
the result of a reference. What happens is clear, fine, obscure (any other exception) or silent (taken where it should
be refused, or with another result).
"""

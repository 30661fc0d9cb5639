"""A blind listening test for a class: its folder of answers (`folder`), its site (`server`), its command."""

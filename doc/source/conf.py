"""Sphinx's settings: ``make docs`` builds the pages into doc/build."""

project = "migrator"
author = "the migrator maintainers"
html_title = "migrator"
html_theme = "alabaster"
html_theme_options = {"description": "Moves block-storage volumes between backends", "page_width": "60rem"}
html_show_copyright = False
nitpicky = True

"""The pages of the site, and the scripts that write their numbers and pictures: python -m docs.make_pages."""

"""A report as data, the page that it becomes, and small pictures for it. It knows nothing of what is reported."""

"""How small a student can be: a study of sizes, what each costs to play, and the page that says so."""

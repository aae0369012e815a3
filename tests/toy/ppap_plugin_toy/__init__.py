"""A plugin whose every answer is known in closed form."""

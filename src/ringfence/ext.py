"""Extensions of an instance: declare, find and configure them."""

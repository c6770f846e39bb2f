"""OpenAI's Responses on top of chat: the request as a chat body, the answer as Responses events, and what is stored of both."""

"""What litellm and LangChain's clients of OpenAI's API make of a server: run by a Python that has them."""
# pyrefly: ignore-errors[missing-import]

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks nobody else
import litellm
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

base, model, text = sys.argv[1:]
messages = [{"role": "user", "content": text}]
lite: dict[str, Any] = {"api_base": base, "api_key": "none"}
chat: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": 30, **lite}
lang: dict[str, Any] = {"base_url": base, "api_key": "none", "model": model, "max_retries": 0}
chatting = ChatOpenAI(**lang, temperature=0, max_tokens=30)
responding = ChatOpenAI(**lang, temperature=0, max_tokens=30, use_responses_api=True)
completing = OpenAI(**lang, temperature=0, max_tokens=30)
# By ids of OpenAI's own tokenizer otherwise, which no other model has
embedding = OpenAIEmbeddings(**lang, check_embedding_ctx_length=False)

found: dict[str, Any] = {
    "litellm chat": litellm.completion(f"openai/{model}", **chat).choices[0].message.content,
    "litellm vLLM chat": litellm.completion(f"hosted_vllm/{model}", **chat).choices[0].message.content,
    "litellm stream": "".join(
        chunk.choices[0].delta.content or "" for chunk in litellm.completion(f"openai/{model}", stream=True, **chat)
    ),
    "litellm response": litellm.responses(
        model=f"openai/{model}", input=text, max_output_tokens=30, temperature=0, **lite
    ).output[0].content[0].text,
    "litellm embedding": litellm.embedding(f"openai/{model}", [text], encoding_format="float", **lite)
    .data[0]["embedding"],
    "litellm ranks": [
        own["index"]
        for own in litellm.rerank(f"hosted_vllm/{model}", query=text, documents=["b", text, "c"], **lite).results
    ],
    "LangChain chat": chatting.invoke(text).text,
    "LangChain stream": "".join(chunk.text for chunk in chatting.stream(text)),
    "LangChain response": responding.invoke(text).text,
    "LangChain response stream": "".join(chunk.text for chunk in responding.stream(text)),
    "LangChain completion": completing.invoke(text),
    "LangChain embedding": embedding.embed_query(text),
}  # fmt: skip
print(json.dumps(found))

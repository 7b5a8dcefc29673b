"""The words of the synthetic mailbox: invented people, companies and projects, and sentences with slots.

A slot in braces is filled by `grammar`. Every list has words that also occur where they mean nothing (a time of day,
a name, a question mark), so that no single word decides.
"""

from mlx_email.synth.rule import Kind

COMPANY = "northgate"  # the owners' own; its addresses end in <department>.northgate.example

FIRST = (
    "Ada Alan Amir Anna Bella Ben Boris Carla Cheng Clara Colin Dana David Dora Edith Elena Emil Erik Fatima Fiona "
    "Frank Gina Greg Hana Hugo Ida Ines Ivan Jack Jana Joel Julia Karl Kate Kenji Lara Leo Lina Marco Maria Max Mina "
    "Nadia Nils Nora Olga Oscar Paula Pedro Petra Priya Rahul Rita Rosa Ruth Sam Sara Sven Tara Theo Tom Uma Vera "
    "Viktor Wanda Yara Yusuf Zoe"
).split()
LAST = (
    "Abbott Archer Barker Birch Bolton Brandt Burke Calder Carver Castle Cooper Dalton Drake Easton Ellis Farrow "
    "Fletcher Foster Garner Grant Hale Harper Hobbs Holt Irwin Jarvis Keller Kemp Lang Larkin Lowe Marsh Mercer Moss "
    "Nash Norris Oakes Osborn Palmer Parrish Pike Porter Quinn Ramsey Reid Rowe Sawyer Sharp Shaw Stone Tate Thorne "
    "Turner Vance Wade Walsh Webb Wells Wolfe York"
).split()
COMPANIES = (
    "alderfield amberline arclight bluecrest boldwater brightmoor cedarworks clearford copperhill cranebay dunmore "
    "eastvale elmstead fairhaven foxbridge glenrock goldmere greywick highfield ironwood kestrel lakeshore larkspur "
    "maplewood millbrook moorgate oakridge pinecrest quarrybank redfern ridgeway rosehill silverton stonebridge "
    "sunfield tidewater westbrook whitcombe willowdale winterton"
).split()
PROJECTS = (
    "Falcon Harbour Juniper Comet Orchard Beacon Granite Lantern Meadow Nimbus Otter Pebble Quartz Raven Saffron "
    "Tulip Umbra Violet Walnut Zephyr Anchor Bramble Cobalt Delta Ember Fjord Glacier Hazel Indigo Jasper Kingfisher "
    "Lotus Magnet Nectar Opal Prairie Rocket Summit Thistle Vector"
).split()
DOCUMENTS = (
    "budget,contract,forecast,invoice,price list,schedule,draft,summary,checklist,order form,risk plan,agreement,"
    "cost sheet,test plan,offer,manual,staff list,travel plan,sales plan,audit file"
).split(",")
GOODS = "pumps,valves,cables,filters,desks,printers,sensors,motors,pipes,panels,batteries,tools".split(",")
TOPICS = "energy,freight,tax law,trading,metals,weather,retail,farming,shipping,banking,software,property".split(",")
SYSTEMS = "payroll,billing,archive,mail,stock,booking,ledger,backup,metering,pricing".split(",")
PLACES = "Leeds,Oslo,Turin,Porto,Lyon,Bergen,Ghent,Graz,Malmo,Cork,Derby,Basel".split(",")
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday".split()
HOURS = "8 am,9 am,10 am,11 am,noon,1 pm,2 pm,3 pm,4 pm,5 pm".split(",")

BOSS_TITLES = (
    "Head of {Department}",
    "Managing Director",
    "Vice President",
    "Director of {Department}",
    "Chief of {Department}",
)
STAFF_TITLES = ("Analyst", "Engineer", "Clerk", "Planner", "Buyer", "Associate")
NEWSLETTER_LOCALS = ("news", "newsletter", "digest", "bulletin")
AUTOMATED_LOCALS = ("noreply", "alerts", "system", "monitor")
PROMOTER_LOCALS = ("offers", "deals", "marketing", "promo")

GREETINGS = ("Hi {you},", "Hello {you},", "{you},", "Dear {you},", "Good morning {you},", "{you} -", "")
GROUP_GREETINGS = ("Hi all,", "Dear all,", "Hello everybody,", "Team,", "All,", "")
SIGN_OFFS = ("Thanks,", "Regards,", "Best,", "Many thanks,", "Cheers,", "Best wishes,", "Yours,", "")

# What the message is. The first sentence of a body or the second: see `grammar`.
CORE: dict[Kind, tuple[str, ...]] = {
    "request": (
        "Could you send me the {document} for {project}?",
        "Please update the {document} of {project} with the {month} figures.",
        "I need the revised {document} for {project} from you.",
        "Can you put the {project} {document} on the shared drive?",
        "Please add {place} to the {document} and send it back to me.",
        "Would you correct page {n} of the {document}?",
        "Kindly let me have a copy of the {project} {document}.",
        "I would be glad of your comments on the {document}.",
    ),
    "question": (
        "Do you know when {project} moves to {place}?",
        "What price did we agree in the {document}?",
        "Which {document} should we use for {place}?",
        "Is the {document} for {project} still valid after {month}?",
        "How many {goods} do we expect in {month}?",
        "Who was at the {project} meeting on {day}?",
        "Why does the {document} show {n} {goods}?",
        "I wonder whether {project} also covers {place}.",
    ),
    "approval": (
        "The {document} for {project} needs your approval.",
        "May I go ahead and spend {amount} on {goods}?",
        "Please sign off the {document} over {amount}.",
        "I am waiting for your yes to the {project} {document}.",
        "Are you happy for us to order {n} {goods} for {amount}?",
        "Could you approve {amount} for the trip to {place}?",
    ),
    "complaint": (
        "The {goods} you sent us arrived damaged again.",
        "We have been charged twice for order {n}.",
        "This is the third late delivery of {goods} and we are not happy.",
        "Half of the {goods} in order {n} do not work.",
        "Nobody has called us back about the broken {goods}.",
        "The {document} is wrong again and we expected better of you.",
    ),
    "invitation": (
        "You are invited to the {project} review on {day} at {hour}.",
        "Can you join the {project} lunch on {day} at {hour}?",
        "We hold a workshop on the {document} in {place} on {day}.",
        "There is a place for you at the {project} evening on {day}.",
        "Would you come to the {place} meeting on {day} at {hour}?",
    ),
    "information": (
        "Just so you know, the {document} for {project} is on the shared drive.",
        "For your information: {project} moves to {place} in {month}.",
        "The {goods} for {project} arrived safely on {day}.",
        "A short note that the {project} meeting now starts at {hour}.",
        "We have signed the {document} and {project} can start in {month}.",
        "This is only to tell you that order {n} is complete.",
    ),
    "report": (
        "Here is the {month} report on {project}: {n} {goods}, cost {amount}.",
        "The weekly numbers for {project}: {n} hours, {amount} spent.",
        "Attached are the {month} results of {place}, {n} units in all.",
        "Status of {project}: {n} percent done, {amount} left.",
        "The figures for {month} are in: {amount} from {n} orders.",
    ),
    "newsletter": (
        "In this issue: {topic} prices, a visit to {place} and {n} readers' letters.",
        "The {topic} weekly, number {n}. Our story of the week comes from {place}.",
        "This month in {topic}: what changed in {month}, and why does it matter?",
        "Top stories in {topic}: {place} opens a new plant, {goods} get cheaper.",
        "Your {topic} round-up for {month}. Should {place} worry?",
    ),
    "notice": (
        "The {system} run finished without errors in {n} minutes.",
        "Your {system} password was changed on {day} at {hour}.",
        "The {system} job {n} completed. All checks passed.",
        "Maintenance of {system} is complete and the service is back.",
        "Your {system} export for {month} is ready.",
    ),
    "alarm": (
        "The {system} run failed at {hour} with error {n}.",
        "{system} does not respond since {hour}. Error code {n}.",
        "Warning: the {system} disk is {n} percent full.",
        "Job {n} of {system} stopped. {n} records were not written.",
        "Check failed: {system} is missing data for {month}.",
    ),
    "promotion": (
        "Save {n} percent on all {goods}. Ready for a better deal?",
        "Our best {goods} are now only {amount}.",
        "Buy two {goods}, get one free. What are you waiting for?",
        "A special price for you: {goods} from {amount}.",
        "New {goods} in our shop, with {n} percent off. Please click to order.",
    ),
}
SEMINARS = (  # a promoter's invitation
    "Join our free seminar on {topic} in {place} on {day}.",
    "You are invited to our {topic} show in {place}. Will we see you?",
    "Reserve your seat at our {topic} breakfast on {day} at {hour}.",
)
CUSTOMER_INFORMATION = (
    "The {goods} you sent arrived safely on {day} and work well.",
    "Just so you know, we have signed the {document} on our side.",
    "For your information: our office moves to {place} in {month}.",
    "This is only to tell you that we paid order {n} on {day}.",
)

NOW = (
    "I need this by {hour} today.",
    "It has to be settled before {hour} today.",
    "Please treat this as urgent.",
    "It cannot wait until tomorrow.",
    "We lose the slot unless it is settled within the hour.",
    "This is needed right away.",
    "Time is very short here, so please do it at once.",
)
LATER = (
    "No rush, any time next week is fine.",
    "Whenever you get a chance.",
    "It can wait until the end of {month}.",
    "There is no hurry on this.",
    "Nothing urgent here, take your time.",
    "Next week is early enough.",
    "It is not needed before {day} week.",
)
TIMELESS = (  # words of time that say nothing of urgency
    "We spoke about it today at lunch.",
    "It came up in the call this morning.",
    "I was in {place} until {hour}.",
    "The last one was from {month}.",
    "We started on it on {day}.",
    "",
    "",
)
LAST_CHANCE = ("The offer ends tonight, act now!", "Only until {hour} today.", "Hurry, this is your last chance!")
ALARM_NOW = ("Act at once.", "Urgent: data may be lost.", "Immediate action is needed.")

OTHER = (
    "{other} looks after {matter} now.",
    "{other} is in charge of {matter}.",
    "I hear that {matter} is with {other}.",
    "{matter} was passed to {other} in {month}.",
    "I think {other} deals with {matter}.",
    "The person responsible for {matter} is {other}.",
)
YOU = (
    "I know that {matter} is yours.",
    "You look after {matter}, so I turn to you.",
    "I hear that {matter} is with you now.",
    "As you are in charge of {matter}, it is yours to decide.",
    "{matter} was passed to you in {month}.",
    "You are the person responsible for {matter}.",
)
NOBODY = (  # names that handle nothing
    "{other} sends regards.",
    "{other} and I met on {day}.",
    "I had the numbers from {other}.",
    "{other} is back from {place}.",
    "",
    "",
)
RUN_BY = ("{matter} is run by {other}.", "Responsible: {other}.", "{other} is in charge of {matter}.")
RUN_BY_NOBODY = ("First reported by {other}.", "Log file {n} was kept.", "Restart number {n}.", "")

CUSTOMER_LINES = (
    "We have been your customer since {month}.",
    "Our account number is {n}.",
    "It concerns our contract {n} with you.",
    "We at {sender_company} order from you every month.",
    "",
)
FOOTERS: dict[str, tuple[str, ...]] = {
    "newsletter": ("To unsubscribe, reply with STOP.", "You receive this as a reader of our letter.", "Edition {n}."),
    "automated": ("Please do not reply to this message.", "This message was sent by a machine.", "Host {system}{n}."),
    "promoter": ("To unsubscribe, click here.", "Prices without tax.", "Our shop in {place} is open until {hour}."),
}

# Subjects: the general ones come with every kind of human mail, so that a subject alone says little.
SUBJECTS = (
    "{project} {document} {month}",
    "{project}: {document}",
    "{document} {ref}",
    "{project} / {place} {ref}",
    "{project} {ref}",
    "{month} {document} for {place}",
)
KIND_SUBJECTS: dict[Kind, tuple[str, ...]] = {
    "request": ("{document} needed for {project}", "Please send: {project} {document}"),
    "question": ("Question about {project} {ref}", "{place} {document}?"),
    "approval": ("For approval: {project} {document}", "{amount} for {project}"),
    "complaint": ("Order {ref}", "{goods} for {sender_company} {ref}"),
    "invitation": ("{project} on {day} {ref}", "{place} {day} {hour} {ref}"),
    "information": ("News on {project} {ref}", "{project} update {month}"),
    "report": ("{project} report {month}", "{place} figures {month} {ref}"),
    "newsletter": ("{topic} weekly {ref}", "{topic} in {month}, issue {ref}"),
    "notice": ("{system} job {ref}", "{system} message {ref}"),
    "alarm": ("{system} job {ref}", "{system} message {ref}"),
    "promotion": ("{goods} from {amount} {ref}", "{month} offers: {goods} {ref}"),
}

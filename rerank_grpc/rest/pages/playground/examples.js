// Texts to begin with. `by` is what stands between their documents; `chunks` where they are long.

export const EXAMPLES = [
  {
    name: "Help desk",
    language: "en",
    by: "line",
    query: "How do I reset my password?",
    documents: [
      "Our office is closed on public holidays and reopens the next working day at nine.",
      "You can change your e-mail address under Settings, Profile, Contact.",
      "Passwords must have at least twelve characters, one of them a digit.",
      "To pay by invoice, ask your account manager for a purchase order number.",
      "Forgot password? On the sign-in page choose “I cannot sign in” and follow the link that we mail you.",
      "Two-factor codes come from an authenticator app; keep the recovery codes in a safe place.",
      "Invoices are sent on the first of each month and are payable within thirty days.",
      "An administrator can send a new sign-in link to any member of the team from the Members page.",
      "The mobile app works offline and synchronises when a connection is there again.",
      "If your account is locked after five failed attempts, wait fifteen minutes before you try again.",
    ],
  },
  {
    name: "Long articles",
    language: "en",
    by: "blank",
    chunks: 8,
    query: "Why should bread not be kept in the refrigerator?",
    documents: [
      "Baking begins long before the oven is hot. Flour is milled from the endosperm of the grain, and its protein decides how much water the dough can hold. Bakers speak of hydration: the weight of the water against that of the flour. A dough of sixty per cent is firm and easy to shape; one of eighty is slack, and rewards patience with an open crumb. Salt comes next. It slows the yeast, tightens the gluten and, above all, gives taste. Two per cent of the flour's weight is usual. Yeast feeds on sugars that enzymes free from the starch, and gives off carbon dioxide and alcohol. A long, cool fermentation lets bacteria add acids, which is why a dough that has rested overnight tastes of more than flour. Shaping stretches the skin of the loaf so that it holds the gas; a cut with a sharp blade tells it where to open. In the oven the loaf springs for some ten minutes, until the crust sets and the starch has swollen. Steam in the first minutes keeps the surface soft and makes it shine. When the middle has ninety-six degrees, the loaf is done. It should cool on a rack for an hour, since the crumb is still setting. What follows is chemistry of a slower kind. Staling is not drying: the starch, which swelled and lost its order in the oven, crystallises again and gives its water away, so that the crumb turns firm even in a closed bag. It does so fastest just above freezing, which is why a refrigerator is the worst place for a loaf, and a freezer a good one. Fat, malt and sourdough's acids slow it; a minute in a hot oven undoes it for a while.",
      "The city's tram lines were laid out when most people still walked to work. The first ran from the harbour to the market, behind horses, and took half an hour. Electric cars came in 1898 and halved that. By 1930 nineteen lines met at the central square, and on a winter evening a tram left it every twenty seconds. Then came the bus, which needed no rails, and the private car, which needed no timetable. Line after line was given up; the last but three closed in 1967. That three survived was luck: they ran through a tunnel too narrow for buses. In the eighties the council counted passengers and found that those three carried a third of all journeys. A new line was drawn along the ring road, then a second to the university. The cars are low now, and doors open level with the platform, so that prams and wheelchairs roll in. Power comes back from the brakes into the wire, and at night the depot feeds what is left into the grid. Critics say the works take too long and cost too much; shops along the new line lost a fifth of their trade in the second summer of digging, and got it back within a year of the opening.",
      "A kitchen garden on a balcony needs less than its owner thinks: light for six hours, pots with holes, and water at the same time each day. Lettuce and radishes are ready in six weeks and forgive most mistakes. Tomatoes want a large pot, a stick to climb and a roof against rain, since wet leaves catch blight. Basil hates the cold; mint takes over whatever it shares a pot with. Feed from June on, little and often. Compost from a box of worms is as good as any that is sold. Pick leaves from the outside, and the plant goes on from within. Herbs that are cut before they flower keep their taste, and freeze well, chopped, in an ice cube tray under a film of oil. A handful of crumbs from yesterday's loaf, fried with garlic, makes a salad of it all. In autumn, empty the pots, store them dry, and write down what worked: next spring you will not remember.",
    ],
  },
  {
    name: "Four languages",
    language: "en",
    by: "line",
    query: "a train ticket that can be returned",
    documents: [
      "Flexible fares can be cancelled free of charge until the day before departure.",
      "Das Flexpreis-Ticket kann bis einen Tag vor Reiseantritt kostenlos storniert werden.",
      "Le wagon-restaurant est ouvert jusqu’à vingt-deux heures.",
      "Super saver tickets are valid for one train only and are not refundable.",
      "高铁车票可在开车前在线退票，按时间收取手续费。",
      "Bicycles travel in the last coach and need a reservation.",
      "Les billets Loisir sont échangeables et remboursables jusqu’à six jours avant le départ.",
      "Bitte halten Sie Ihre Fahrkarte für die Kontrolle bereit.",
    ],
  },
  {
    name: "客服问答",
    language: "zh",
    by: "line",
    query: "怎样申请退款？",
    documents: [
      "本店营业时间为每天早上九点到晚上九点，节假日不休息。",
      "收到商品七天内，可在“我的订单”中点击“申请售后”，选择退款原因并提交。",
      "会员积分每年年底清零，请及时兑换。",
      "退款审核通过后，款项会在三个工作日内原路退回。",
      "修改收货地址请在发货前联系客服。",
      "生鲜食品签收后不支持无理由退货。",
      "电子发票会发送到您预留的邮箱。",
      "忘记密码时，请用手机号接收验证码重新设置。",
    ],
  },
  {
    name: "长文",
    language: "zh",
    by: "blank",
    chunks: 8,
    query: "为什么绿茶不能用开水冲泡？",
    documents: [
      "中国人饮茶的历史很长。唐代的人把茶饼碾成末，放进锅里煮，还会加盐；宋代的人把茶末放在碗中，注水后用茶筅打出白沫，以沫的厚薄论高下；到了明代，散茶取代了茶饼，人们开始用壶和盖碗冲泡，一直沿用到今天。茶叶按照制作方法分为六类：绿茶、白茶、黄茶、青茶、红茶和黑茶，差别主要在于氧化的程度。采茶的季节也很要紧，清明前的芽头细嫩，谷雨后的叶片厚实，价钱相差几倍。储存茶叶要避光、防潮、密封，绿茶最好放进冰箱，黑茶却要通风。至于冲泡，各类茶对水温的要求并不相同。绿茶没有经过氧化，芽叶细嫩，所含的茶多酚和维生素遇到沸水会很快溶出并被破坏，茶汤发黄，味道又苦又涩，所以一般把水放凉到八十度左右再冲，时间也不要太长。乌龙茶和黑茶叶片粗老，需要沸水才能泡出香味。第一泡的时间短一些，以后逐次延长。",
      "这座城市的地铁从规划到通车用了十二年。最早的方案只有两条线，一条贯穿南北，一条连接东西，在市中心的广场换乘。工程开始以后，人们在地下发现了一段古城墙，线路不得不绕行，工期因此推迟了两年。为了保护文物，施工单位请来考古队，一边发掘一边施工，后来在车站大厅里建了一座小型博物馆，乘客换乘时隔着玻璃就能看见城墙的夯土层。通车第一年，每天的客流量只有预计的六成；到了第三年，沿线建起了住宅和商场，早晚高峰已经拥挤不堪。如今全市有九条线路，最短的发车间隔为一分五十秒。车站里设有无障碍电梯、母婴室和直饮水机。夜间停运以后，检修人员要在四个小时内走完全部轨道，检查每一颗螺栓。",
      "阳台种菜并不难，只要每天有六个小时的日照、底部有孔的花盆，再加上按时浇水。生菜和小萝卜六个星期就能收获，最适合新手。番茄需要大一点的盆和支架，还要避免雨水打湿叶片，否则容易生病。薄荷长得太快，最好单独种一盆。从六月开始，每隔十天施一次薄肥。采摘时从外层的叶子摘起，里面的还会继续长。秋天把盆倒空晾干，记下哪些种得好、哪些种得不好，来年就不会忘记。摘下来的薄荷叶可以和绿茶一起冷泡，放在冰箱里过一夜，第二天就是清凉的饮料。",
    ],
  },
];

export const textOf = ({ documents, by }) => documents.join(by === "line" ? "\n" : "\n\n");
